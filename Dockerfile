# One image for every role. The role is the command, as in `docker run stocklock worker`.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# Strip the debug information, which is four fifths of the binary. The names of functions stay, for
# backtraces.
RUN cargo build --release --locked && strip --strip-debug target/release/stocklock

FROM debian:12-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin stocklock
COPY --from=build /src/target/release/stocklock /usr/local/bin/stocklock
USER 10001
# Addresses that other containers can reach.
ENV STOCKLOCK__HTTP__LISTEN=0.0.0.0:8080 \
    STOCKLOCK__ADMIN__LISTEN=0.0.0.0:9464
EXPOSE 8080 9464
# Asks admin.listen of the environment. A file or a flag of the role is not read here.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["stocklock", "probe", "ready"]
ENTRYPOINT ["stocklock"]
