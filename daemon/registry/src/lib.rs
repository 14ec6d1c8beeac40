//! Images in registries: resolve, fetch, push.
