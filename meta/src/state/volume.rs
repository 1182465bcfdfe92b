//! Volumes: namespaces above buckets. S3 buckets live in `s3v`, made with the first of them.
//!
//! Not here: volumes of other names and bucket links (come with their issue).

use consensus::StoreError;
use wire::names::S3_VOLUME;

use crate::schema::{VOLUME, VolumeRow};
use crate::state::{RowsExt, Txn};

/// Makes `s3v` if it is not there.
pub(crate) fn ensure_s3_volume(txn: &mut Txn<'_, '_>) -> Result<(), StoreError> {
    if txn.row::<VolumeRow>(VOLUME, S3_VOLUME.as_bytes())?.is_none() {
        let row = VolumeRow { owner: String::new(), created_ms: txn.now_ms };
        txn.put(VOLUME, S3_VOLUME.as_bytes(), &row)?;
    }
    Ok(())
}
