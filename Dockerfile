# The appliance: the daemon with everything that builds need, and nothing else.
#
#   make image                       as buildkit-cni:local, from programs built here
#   docker build .                   the same, when target/image holds the programs
#   docker build --build-arg PROGRAMS=source .     compiles them, too
#   docker build --build-arg VARIANT=rootless .    runs as uid 1000, in a user namespace
#
# BASE gives the packages: any Debian 12 whose apt reaches a mirror. Where there is no
# registry to pull it from, `images/base.sh | docker import - debian:bookworm-slim` makes it.

ARG BASE=debian:bookworm-slim
ARG RUST=rust:1-bookworm
ARG PROGRAMS=built
ARG VARIANT=root

FROM ${BASE} AS packages
ARG DEBIAN_MIRROR=
ARG VARIANT
COPY images/rootfs.sh /usr/local/bin/
RUN case $VARIANT in rootless) more="rootlesskit uidmap" ;; esac; \
    DEBIAN_MIRROR="$DEBIAN_MIRROR" rootfs.sh /rootfs $more

FROM ${RUST} AS programs-source
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    make build && install -D -t /programs target/release/buildkitd target/release/buildctl target/release/buildkit-cni && \
    strip /programs/*

FROM scratch AS programs-built
COPY target/image/ /programs/

FROM programs-${PROGRAMS} AS programs

FROM scratch AS system
COPY --from=packages /rootfs/ /
COPY --from=programs /programs/buildkitd /programs/buildctl /usr/bin/
COPY --from=programs /programs/buildkit-cni /opt/cni/bin/
RUN for plugin in $(/opt/cni/bin/buildkit-cni --list); do ln -s buildkit-cni /opt/cni/bin/$plugin; done
ENV PATH=/usr/sbin:/usr/bin
LABEL org.opencontainers.image.title="buildkit-cni" \
      org.opencontainers.image.description="Build daemon that speaks the API of BuildKit" \
      org.opencontainers.image.licenses="Apache-2.0"
HEALTHCHECK --interval=30s --timeout=10s --start-period=10s CMD ["buildctl", "debug", "workers"]

# As moby/buildkit is used: arguments are flags of the daemon.
FROM system AS variant-root
ENV BUILDKIT_SETUP_CGROUPV2_ROOT=1
VOLUME /var/lib/buildkit
ENTRYPOINT ["/usr/bin/buildkitd"]

# The root of a user namespace that RootlessKit makes. The host's network is that of the
# container, and it may not mount /proc.
FROM system AS variant-rootless
ENV USER=user HOME=/home/user XDG_RUNTIME_DIR=/run/user/1000 \
    BUILDKIT_HOST=unix:///run/user/1000/buildkit/buildkitd.sock
VOLUME /home/user/.local/share/buildkit
USER 1000:1000
ENTRYPOINT ["rootlesskit", "--net=host", "/usr/bin/buildkitd", "--oci-worker-net=host"]

FROM variant-${VARIANT}
