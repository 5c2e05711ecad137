# One image for every role. The role is the command, as in `docker run stocklock worker`.
# `dev/image build` sets the arguments below; a plain `docker build .` works too.

# Pin both by digest for a release: --build-arg RUNTIME_IMAGE=…@sha256:… (docs/releasing.md).
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
ARG CARGO_AUDITABLE_VERSION=0.7.7
RUN cargo install --quiet --locked cargo-auditable@${CARGO_AUDITABLE_VERSION}
WORKDIR /src
COPY . .
# Seconds since 1970, the time of the commit: the times of files in the image.
ARG SOURCE_DATE_EPOCH=0
RUN dev/lib/build_release /tmp/target && install -D /tmp/target/release/stocklock /out/stocklock \
    && touch --date="@${SOURCE_DATE_EPOCH}" /out/stocklock && rm -rf /tmp/target

# The C library, OpenSSL, certificate authorities, and no shell.
FROM ${RUNTIME_IMAGE}
COPY --from=build /out/stocklock /usr/local/bin/stocklock
# No name: the image needs no user of its own. The chart runs pods as this user too.
USER 10001:10001
# Addresses that other containers can reach. The environment comes before a file of --config, so a
# mounted file cannot change them (docs/releasing.md).
ENV STOCKLOCK__HTTP__LISTEN=0.0.0.0:8080 \
    STOCKLOCK__ADMIN__LISTEN=0.0.0.0:9464
EXPOSE 8080 9464
# Asks admin.listen of the environment. A file or a flag of the role is not read here.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["stocklock", "probe", "ready"]
ENTRYPOINT ["stocklock"]
# Last, so that another revision keeps the layers above.
ARG RUNTIME_IMAGE
ARG VERSION=0.0.0-unversioned
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="stocklock" \
    org.opencontainers.image.description="Deducts stock for orders that arrive on Kafka: all lines or none, never twice, never below zero." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.source="https://github.com/stocklock/stocklock" \
    org.opencontainers.image.documentation="https://github.com/stocklock/stocklock/blob/main/README.md" \
    org.opencontainers.image.base.name="${RUNTIME_IMAGE}" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}"
