# Stands in for apache/kafka: Debian's Java with Kafka's own jar files and scripts that keep to the official image's contract:
# user appuser (1000), /etc/kafka/docker/run, three folders that are volumes, configuration mounted at /mnt/shared/config.
ARG BASE
FROM ${BASE}
COPY machine /
RUN apt-get update --quiet=2 \
    && apt-get install --quiet=2 --yes --no-install-recommends hostname openjdk-17-jre-headless procps \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
    && useradd --uid 1000 --create-home --shell /bin/bash appuser \
    && install --directory --owner appuser --group appuser /usr/logs /opt/kafka/config /opt/kafka/logs /mnt/shared/config \
    && install --directory --owner appuser --group root --mode 0775 /var/lib/kafka/data /etc/kafka/secrets
COPY jars /opt/kafka/libs
COPY kafka/docker /etc/kafka/docker
COPY kafka/bin /opt/kafka/bin
RUN chmod 0755 /etc/kafka/docker/run /etc/kafka/docker/launch /opt/kafka/bin/kafka-run-class.sh
EXPOSE 9092
USER appuser
VOLUME ["/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"]
CMD ["/etc/kafka/docker/run"]
