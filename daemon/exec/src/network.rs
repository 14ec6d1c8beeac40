//! The network a process is put into: what the executor needs of it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Failure, Kind};
use cni::dns::ResolvConf;

pub(crate) const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// Makes networks for processes.
#[async_trait]
pub trait Network: Send + Sync {
    /// A network for one run. `hostname` is empty unless the run asks for one.
    ///
    /// # Errors
    /// When none can be made; the message names the cause.
    async fn new_namespace(&self, hostname: &str) -> Result<Box<dyn Namespace>, Failure>;

    /// A network that leads nowhere, with `address` for what serves in it.
    ///
    /// # Errors
    /// When none can be made; the message names the cause.
    async fn enclosed(&self, address: Ipv4Addr) -> Result<Box<dyn Namespace>, Failure> {
        let text = format!("proxy network provider is not available: no namespace can be made for {address}");
        Err(Failure::new(Kind::FailedPrecondition, text))
    }
}

/// The network of one run. Dropping it releases it in the background;
/// [`Namespace::release`] waits for what others could notice of it.
#[async_trait]
pub trait Namespace: Send + Sync {
    /// What the process is attached to.
    fn attachment(&self) -> Attachment;

    /// What its `/etc/resolv.conf` says.
    fn resolv_conf(&self) -> ResolvConf;

    /// Variables of the process by which it finds what serves it.
    fn env(&self) -> Vec<String> {
        Vec::new()
    }

    /// The certificate, as PEM, of an authority that the process has to trust.
    fn authority(&self) -> Option<&str> {
        None
    }

    /// Gives the network up. It is never used again.
    ///
    /// # Errors
    /// When something of it may have stayed.
    async fn release(self: Box<Self>) -> Result<(), Failure>;
}

/// What a process is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// The daemon's own network.
    Host,
    /// A namespace bound to a file.
    Path(PathBuf),
    /// A fresh namespace that nothing is connected to.
    Isolated,
}

/// Every run sees the daemon's own network.
#[derive(Debug, Clone, Default)]
pub struct HostNetwork {
    dns: Arc<cni::dns::Overrides>,
}

impl HostNetwork {
    /// With the DNS settings of the configuration.
    pub fn new(dns: cni::dns::Overrides) -> Self {
        Self { dns: Arc::new(dns) }
    }
}

#[async_trait]
impl Network for HostNetwork {
    async fn new_namespace(&self, _hostname: &str) -> Result<Box<dyn Namespace>, Failure> {
        Ok(Box::new(self.clone()))
    }
}

#[async_trait]
impl Namespace for HostNetwork {
    fn attachment(&self) -> Attachment {
        Attachment::Host
    }

    fn resolv_conf(&self) -> ResolvConf {
        ResolvConf::load(Path::new(HOST_RESOLV_CONF)).overridden(&self.dns)
    }

    async fn release(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Every run gets what the daemon's networks give.
#[async_trait]
impl Network for cni::Networks {
    async fn new_namespace(&self, hostname: &str) -> Result<Box<dyn Namespace>, Failure> {
        Ok(Box::new(self.namespace(hostname).await?))
    }

    async fn enclosed(&self, address: Ipv4Addr) -> Result<Box<dyn Namespace>, Failure> {
        Ok(Box::new(cni::Networks::enclosed(self, address).await?))
    }
}

#[async_trait]
impl Namespace for cni::Namespace {
    fn attachment(&self) -> Attachment {
        match self.path() {
            Some(path) => Attachment::Path(path.to_owned()),
            None if self.is_host() => Attachment::Host,
            None => Attachment::Isolated,
        }
    }

    fn resolv_conf(&self) -> ResolvConf {
        cni::Namespace::resolv_conf(self).clone()
    }

    async fn release(self: Box<Self>) -> Result<(), Failure> {
        // What the kernel does for a namespace to go is nothing to wait for.
        drop(self);
        Ok(())
    }
}

/// The network of a process that asked for none.
pub(crate) struct NoNetwork(pub cni::dns::Overrides);

#[async_trait]
impl Namespace for NoNetwork {
    fn attachment(&self) -> Attachment {
        Attachment::Isolated
    }

    fn resolv_conf(&self) -> ResolvConf {
        ResolvConf::load(Path::new(HOST_RESOLV_CONF)).without_loopback().overridden(&self.0)
    }

    async fn release(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}
