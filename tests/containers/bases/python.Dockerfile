# Stands in for python:3.11 of the slim kind: Debian's own Python 3.11 under the names that the official image has.
ARG BASE
FROM ${BASE}
COPY machine /
RUN apt-get update --quiet=2 \
    && apt-get install --quiet=2 --yes --no-install-recommends netbase python3.11 python3.11-venv tzdata \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python3
# apt's package of certificates has written its own bundle over the machine's.
COPY machine/etc/ssl /etc/ssl
ENV LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DEFAULT_TIMEOUT=180
CMD ["python3"]
