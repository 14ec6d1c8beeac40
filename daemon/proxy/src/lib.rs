//! An HTTP proxy for one build step, through which all of its requests go.
//!
//! [`Proxy::start`] is given a listener that only the step can reach, a way out
//! ([`Egress`]) and a [`Policy`]. Every request, in plain HTTP or within TLS, is
//! put to the policy by its URL, fetched, passed on while it arrives, and noted
//! in a [`Capture`] with the digest of what was fetched. TLS ends here: the proxy
//! shows certificates of an authority of its own, made for this step and gone
//! with it. Nothing but HTTP gets through: no tunnels, no upgrades.
//!
//! The step is not trusted. Headers, connections and what is noted are bounded,
//! bodies are never held as a whole, and when the proxy is stopped every
//! connection ends at once.

mod authority;
mod body;
mod capture;
mod error;
mod proxy;
mod relay;
mod upstream;

pub use capture::{Capture, Incomplete, Material, Request};
pub use error::Error;
pub use proxy::{Policy, Proxy, Terms};
pub use upstream::Egress;
