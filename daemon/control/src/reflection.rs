//! Reflection: which services and messages there are, for clients that know none.
//!
//! What describes them is large and hardly anybody asks, so it is read at the first call.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::service::RoutesBuilder;
use tonic_reflection::server::{Builder, Error};

fn builder() -> Builder<'static> {
    Builder::configure().register_encoded_file_descriptor_set(proto::DESCRIPTORS)
}

/// In both of its versions.
pub(crate) fn add(routes: &mut RoutesBuilder) {
    routes.add_service(Lazy::new(|| builder().build_v1()));
    routes.add_service(Lazy::new(|| builder().build_v1alpha()));
}

/// A service that is made when it is called for the first time.
struct Lazy<S, F> {
    make: F,
    made: Arc<OnceLock<Result<S, Error>>>,
}

impl<S, F: Fn() -> Result<S, Error>> Lazy<S, F> {
    fn new(make: F) -> Self {
        Self { make, made: Arc::default() }
    }
}

impl<S, F: Clone> Clone for Lazy<S, F> {
    fn clone(&self) -> Self {
        Self { make: self.make.clone(), made: self.made.clone() }
    }
}

impl<S: NamedService, F> NamedService for Lazy<S, F> {
    const NAME: &'static str = S::NAME;
}

type Request = http::Request<Body>;
type Response = http::Response<Body>;

impl<S, F> Service<Request> for Lazy<S, F>
where
    S: Service<Request, Response = Response, Error = Infallible, Future = BoxFuture<Response, Infallible>>
        + Clone,
    F: Fn() -> Result<S, Error>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.made.get_or_init(&self.make) {
            Ok(service) => service.clone().call(request),
            Err(e) => {
                let answer = Status::internal(format!("reflection data: {e}")).into_http();
                Box::pin(async { Ok(answer) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_describes_the_services_can_be_read() {
        super::builder().build_v1().unwrap();
        super::builder().build_v1alpha().unwrap();
    }
}
