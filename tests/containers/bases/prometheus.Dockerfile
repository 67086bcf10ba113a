# Stands in for prom/prometheus: Debian's Prometheus with the official image's user, volume and entry point.
ARG BASE
FROM ${BASE}
COPY machine /
RUN apt-get update --quiet=2 \
    && apt-get install --quiet=2 --yes --no-install-recommends prometheus wget \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
    && install --directory --owner nobody --group nogroup /prometheus
USER nobody
EXPOSE 9090
VOLUME ["/prometheus"]
WORKDIR /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
