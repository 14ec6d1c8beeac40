# Everything a person types. `make run` is the way in, `make test` the way to be sure.

.PHONY: run stop build install uninstall deb image push image-programs base-image test lint bench clean

# Where `install` puts things, and where it takes the programs from.
PREFIX ?= /usr/local
TARGET := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS ?= $(TARGET)/release
UNITDIR ?= $(PREFIX)/lib/systemd/system
USERUNITDIR ?= $(dir $(UNITDIR))user

comma := ,

# What is built in besides. `FEATURES=` leaves out netavark, which takes minutes and protoc.
FEATURES ?= buildkitd/netavark


## Installs what is missing, builds, starts the daemon and builds an example.
run:
	@integration/setup.sh run
	cargo build --release -p buildkitd -p buildctl -p cni-plugins
	@integration/example/run.sh $(TARGET)/release

## Stops the daemon that `make run` has started.
stop:
	@integration/example/run.sh $(TARGET)/release stop

## The programs, optimised, in target/release (or where CARGO_TARGET_DIR points to).
build:
	@$(if $(FEATURES),integration/setup.sh build)
	cargo build --release -p buildkitd -p buildctl -p cni-plugins --features '$(FEATURES)'

## Programs and units, from PROGRAMS to PREFIX below DESTDIR; `make build` comes first.
install:
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(PROGRAMS)/buildkitd $(PROGRAMS)/buildctl
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/libexec/buildkit-cni $(PROGRAMS)/buildkit-cni
	strip $(DESTDIR)$(PREFIX)/bin/buildkitd $(DESTDIR)$(PREFIX)/bin/buildctl $(DESTDIR)$(PREFIX)/libexec/buildkit-cni/buildkit-cni
	for plugin in $$($(PROGRAMS)/buildkit-cni --list); do \
	    ln -sf buildkit-cni $(DESTDIR)$(PREFIX)/libexec/buildkit-cni/$$plugin || exit 1; done
	install -D -m 644 -t $(DESTDIR)$(UNITDIR) systemd/buildkitd.socket
	sed 's|@BINDIR@|$(PREFIX)/bin|' systemd/buildkitd.service | install -D -m 644 /dev/stdin $(DESTDIR)$(UNITDIR)/buildkitd.service
	sed 's|@BINDIR@|$(PREFIX)/bin|' systemd/user/buildkitd.service | install -D -m 644 /dev/stdin $(DESTDIR)$(USERUNITDIR)/buildkitd.service
	install -D -m 644 systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/buildkit.conf
ifeq ($(DESTDIR),)
	systemd-sysusers $(PREFIX)/lib/sysusers.d/buildkit.conf
	systemctl daemon-reload || true
endif

## Takes away what `install` has put there; images and caches stay.
uninstall:
ifeq ($(DESTDIR),)
	systemctl disable --now buildkitd.socket buildkitd.service || true
endif
	rm -f $(DESTDIR)$(PREFIX)/bin/buildkitd $(DESTDIR)$(PREFIX)/bin/buildctl
	rm -rf $(DESTDIR)$(PREFIX)/libexec/buildkit-cni
	rm -f $(DESTDIR)$(UNITDIR)/buildkitd.socket $(DESTDIR)$(UNITDIR)/buildkitd.service
	rm -f $(DESTDIR)$(USERUNITDIR)/buildkitd.service
	rm -f $(DESTDIR)$(PREFIX)/lib/sysusers.d/buildkit.conf

## The Debian package, as target/buildkit-cni.deb.
deb: build
	systemd/package.sh $(PROGRAMS) target/buildkit-cni.deb

## The image, as buildkit-cni:local; any builder will do that takes docker's arguments.
## VARIANT=rootless makes buildkit-cni:rootless.
DOCKER_BUILD ?= docker build
VARIANT ?= root
image: image-programs
	$(DOCKER_BUILD) --build-arg VARIANT=$(VARIANT) --tag buildkit-cni:$(if $(filter rootless,$(VARIANT)),rootless,local) .

## The image to a registry, as IMAGE=HOST/NAME:TAG, with its provenance and a list of what is
## in it. SCANNER is the image that makes the list, where it is not to be buildx's own choice.
BUILDX ?= docker buildx
push: image-programs
	$(BUILDX) build --build-arg VARIANT=$(VARIANT) --attest type=provenance,mode=max \
	    --attest type=sbom$(if $(SCANNER),$(comma)generator=$(SCANNER)) --push --tag $(or $(IMAGE),$(error IMAGE=HOST/NAME:TAG is missing)) .

image-programs: build
	install -D -m 755 -s -t target/image $(PROGRAMS)/buildkitd $(PROGRAMS)/buildctl $(PROGRAMS)/buildkit-cni

## What the image is made from, where no registry has it.
base-image:
	images/base.sh | docker import - debian:bookworm-slim

## Every test there is, as root; installs what they need.
test:
	@integration/test.sh

## What has to be clean before a change goes in.
lint:
	@$(if $(FEATURES),integration/setup.sh build)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features '$(FEATURES)' -- -D warnings

## Medians of the daemon's own times; BENCH='a=PATH b=PATH' compares daemons.
bench:
	@integration/setup.sh
	cargo build --release -p buildkitd -p buildctl -p cni-plugins -p integration
	$(TARGET)/release/bench --buildctl $(TARGET)/release/buildctl $(or $(BENCH),buildkitd=$(TARGET)/release/buildkitd)

clean:
	cargo clean
