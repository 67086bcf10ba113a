#!/bin/bash
exec java ${KAFKA_HEAP_OPTS:--Xmx1G -Xms1G} -server -Djava.awt.headless=true -XX:+ExplicitGCInvokesConcurrent \
    ${KAFKA_LOG4J_OPTS:--Dlog4j2.configurationFile=/etc/kafka/docker/tools-log4j2.yaml} -cp "/opt/kafka/libs/*" $KAFKA_OPTS "$@"
