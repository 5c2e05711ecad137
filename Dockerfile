# The image of every role: the role is the command, for instance `docker run stocklock worker`.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin stocklock
COPY --from=build /src/target/release/stocklock /usr/local/bin/stocklock
USER 10001
# Within a container, the addresses that others reach it by.
ENV STOCKLOCK__HTTP__LISTEN=0.0.0.0:8080 \
    STOCKLOCK__ADMIN__LISTEN=0.0.0.0:9464
EXPOSE 8080 9464
# The image has no HTTP client, and bash can speak enough of it.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/9464 && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["stocklock"]
