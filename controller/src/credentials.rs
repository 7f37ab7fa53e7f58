//! Renewal of operators' certificates.

use std::sync::Arc;
use std::time::Duration;

use isthmus_controller_core::Role;
use isthmus_proto::v1;
use isthmus_proto::v1::credentials_server;
use tonic::service::Interceptor;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::authority::{Authority, RequestedKey};
use crate::caller::{Caller, peer};
use crate::join::certificate_message;
use crate::mesh::Mesh;
use crate::operators::{permit, revoked};
use crate::time;

/// The service that operators call whose certificate is old, or has expired.
pub(crate) struct Credentials {
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) lifetime: Duration,
}

/// Lets operators pass who aren't revoked and haven't been away for too long.
#[derive(Clone)]
pub(crate) struct LateOperators(pub(crate) Arc<Mesh>);

impl Interceptor for LateOperators {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = peer(&request)?;
        let Caller::Operator { name, issued, .. } = &peer.caller else {
            return Err(Status::permission_denied("Only operators may call this."));
        };
        // A connection may outlive what the handshake looked at.
        if !peer.caller.may_return(time::now()) {
            return Err(Status::unauthenticated(format!(
                "The certificate of operator {name} expired too long ago to be renewed."
            )));
        }
        let acting = self.0.admit(name, *issued, peer.address.ip())?;
        request.extensions_mut().insert(acting);
        Ok(request)
    }
}

#[tonic::async_trait]
impl credentials_server::Credentials for Credentials {
    async fn renew(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<Response<v1::Certificate>, Status> {
        let acting = permit(&request, Role::View)?;
        let key =
            RequestedKey::from_der(&request.into_inner().certificate_request).map_err(|error| {
                Status::invalid_argument(format!("Bad certificate request: {error}."))
            })?;
        let name = acting.name.clone();
        let at = self.mesh.staff.operators().issue_time(&name, time::now());
        // Who is revoked after this has a certificate of before.
        if !acting.is_good(&self.mesh.staff.operators()) {
            return Err(revoked(&name));
        }
        let issued = self.authority.operator_by_request(&name, &key, at, self.lifetime);
        let issued = issued.map_err(|error| {
            Status::internal(format!("No certificate could be made: {error:#}."))
        })?;
        info!(operator = %name, from = %acting.from, "an operator's certificate was renewed");
        Ok(Response::new(certificate_message(&issued)))
    }
}
