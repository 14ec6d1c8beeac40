# Everything a person types. `make run` is the way in, `make test` the way to be sure.

.PHONY: run stop build test lint bench clean

## Installs what is missing, builds, starts the daemon and builds an example.
run:
	@integration/setup.sh run
	cargo build --release -p buildkitd -p buildctl -p cni-plugins
	@integration/example/run.sh target/release

## Stops the daemon that `make run` has started.
stop:
	@integration/example/run.sh target/release stop

## The programs, optimised, in target/release.
build:
	cargo build --release -p buildkitd -p buildctl -p cni-plugins

## Every test there is, as root; installs what they need.
test:
	@integration/test.sh

## What has to be clean before a change goes in.
lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

## Medians of the daemon's own times; BENCH='a=PATH b=PATH' compares daemons.
bench:
	@integration/setup.sh
	cargo build --release -p buildkitd -p buildctl -p cni-plugins -p integration
	target/release/bench --buildctl target/release/buildctl $(or $(BENCH),buildkitd=target/release/buildkitd)

clean:
	cargo clean
