//! Mounts and overlays.
