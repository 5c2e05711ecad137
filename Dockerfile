# The image of every role: the role is the command, for instance `docker run stocklock worker`.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Without debug information, which is four fifths of the binary; the names of functions stay, for backtraces.
RUN cargo build --release --locked && strip --strip-debug target/release/stocklock

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
# Asks the address that the environment names as admin.listen: a file or a flag is not read here.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["stocklock", "probe", "ready"]
ENTRYPOINT ["stocklock"]
