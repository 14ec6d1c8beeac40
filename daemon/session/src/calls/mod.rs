//! What the daemon asks a client, by service.

pub(crate) mod auth;
pub(crate) mod content;
pub(crate) mod exporter;
pub(crate) mod files;

pub(crate) mod policy;
pub(crate) mod secrets;
pub(crate) mod ssh;
pub(crate) mod upload;

/// The generated client `$client` over `$caller`'s channel, with our limits.
macro_rules! client {
    ($client:path, $caller:expr) => {{
        use $client as Generated;
        Generated::new($caller.channel())
            .max_decoding_message_size(crate::MAX_MESSAGE)
            .max_encoding_message_size(crate::MAX_MESSAGE)
    }};
}
pub(crate) use client;
