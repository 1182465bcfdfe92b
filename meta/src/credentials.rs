//! Users and access keys: the secret stays here, a gateway gets what one day's signatures need.
//!
//! Not here: sealing (see `seal`), rows (see `state::access`).

use client::service::CallError;
use wire::om::{GetSigningKey, PutUser, RetainAccessKeys, SignV2, SignedV2, SigningKey, UserInfo};
use wire::status::{Failure, Status};
use zeroize::Zeroizing;

use crate::command;
use crate::seal;
use crate::server::Om;
use crate::state::{Current, RowsExt, Stop, access};

impl Om {
    pub(crate) async fn put_user(&self, request: PutUser) -> Result<(), CallError> {
        let view = self.view().await?;
        match access::get(view.as_ref(), &request.access_key) {
            Ok((row, user)) => {
                let secret = self.sealer().open(&request.access_key, &row);
                // At every start the same users come again: no change, no new version.
                if user == request.user && secret.as_deref() == Some(&request.secret.0) {
                    return Ok(());
                }
            }
            Err(Stop::Reject(_)) => {}
            Err(stop) => return Err(self.stop_error(stop)),
        }
        drop(view);
        let nonce = wire::random::array();
        let sealed = self.sealer().seal(&request.access_key, &request.secret.0, &nonce);
        let command = command::PutUser { user: request.user, access_key: request.access_key, nonce, sealed };
        self.propose(command).await.map(|_| ())
    }

    pub(crate) async fn retain_access_keys(&self, request: RetainAccessKeys) -> Result<(), CallError> {
        loop {
            let view = self.view().await?;
            let others = access::others(view.as_ref(), &request.access_keys);
            if others.map_err(|error| self.store_error(&error))?.is_empty() {
                return Ok(());
            }
            drop(view);
            let access_keys = request.access_keys.clone();
            self.propose(command::RetainAccessKeys { access_keys }).await?;
        }
    }

    /// The secret of an access key, its user, and the access version it was read at.
    async fn secret(&self, access_key: &str) -> Result<(Zeroizing<String>, UserInfo, u64), CallError> {
        let view = self.view().await?;
        let (row, user) = access::get(view.as_ref(), access_key).map_err(|stop| self.stop_error(stop))?;
        let Current { access_version, .. } = view.current().map_err(|error| self.store_error(&error))?;
        let secret = self.sealer().open(access_key, &row).ok_or_else(|| {
            Failure::new(Status::Internal, "the access key is sealed under another cluster key")
        })?;
        Ok((secret, user, access_version))
    }

    pub(crate) async fn signing_key(&self, request: GetSigningKey) -> Result<SigningKey, CallError> {
        let (secret, user, access_version) = self.secret(&request.access_key).await?;
        let key = seal::signing_key(&secret, &request.day, &request.region, &request.service);
        Ok(SigningKey { user, key, access_version })
    }

    pub(crate) async fn sign_v2(&self, request: SignV2) -> Result<SignedV2, CallError> {
        let (secret, user, access_version) = self.secret(&request.access_key).await?;
        Ok(SignedV2 { user, signature: seal::sign_v2(&secret, &request.string_to_sign), access_version })
    }
}
