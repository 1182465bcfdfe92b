# An image of the one binary: `docker build .` compiles it.
#
# Every stage before the last is built by the engine's older builder, wanted or not, so that each must do with what a
# checkout holds. Where a binary was built outside, it goes onto the first stage: `docker build --target base -t
# ferrozone-base .`, then an image `FROM ferrozone-base` with `COPY ferrozone /usr/local/bin/ferrozone`.

FROM debian:bookworm-slim AS base
# One user without rights; /data is its own, also as a fresh volume.
RUN useradd --system --uid 10001 --create-home --home-dir /data ferrozone \
    && install -d -o ferrozone -g ferrozone /cluster
USER ferrozone
WORKDIR /data
VOLUME /data
# S3, operators, internal.
EXPOSE 9000 9001 9002
ENTRYPOINT ["ferrozone"]
CMD ["server", "/data"]

FROM rust:1-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked -p cli && strip -g target/release/ferrozone

FROM base
COPY --from=build /source/target/release/ferrozone /usr/local/bin/ferrozone
