//! Messages of the Ozone Manager: the namespace as gateways ask for it.
//!
//! Writes carry a [`WriteContext`], so that a repeated request has one effect and one answer. Calls about a bucket carry a
//! [`BucketRef`]: the gateway decides permission from what it cached, and OM refuses the call if that is no longer current.
//!
//! One file per family of calls; whoever uses them names them by this module.
//!
//! Not here: what operators ask ([`crate::operator`]), what Raft logs (meta's `command`), how rows are laid out (meta's
//! `schema`).

mod bucket;
mod key;
mod listing;
mod multipart;
mod rejection;
mod session;
mod user;

pub use bucket::*;
pub use key::*;
pub use listing::*;
pub use multipart::*;
pub use rejection::*;
pub use session::*;
pub use user::*;

use crate::block::{BlockToken, ContainerLocation};
use crate::call::service_calls;
use crate::group::{GroupInfo, MembershipChange};
use crate::ids::{SessionId, WriteId};
use crate::operator::{
    ContainerKeys, CreateNamespaceBucket, CreateVolume, DeleteNamespaceBucket, DeleteVolume, GetGroup,
    GetOmOverview, KeyBlocks, ListContainerKeys, ListNamespaceBuckets, ListVolumes, NamespaceBucket,
    OmOverview, SetBucketQuota, SetDefaultReplication, SetVolume, TransferLeadership, VolumeInfo, WhereKey,
};
use crate::scm::Degraded;

service_calls! {
    /// A request to OM and the type of its answer.
    trait OmCall;
    /// What gateways ask of OM.
    enum OmRequest;
    /// OM's answers.
    enum OmReply;
    OpenSession => SessionId,
    RenewSession => (),
    EndSession => (),
    TakeLoan => Loan,
    ReleaseBlocks => (),
    DegradeBlocks => Degraded,
    RefreshLocations => Vec<ContainerLocation>,
    PutUser => (),
    RetainAccessKeys => (),
    GetSigningKey => SigningKey,
    SignV2 => SignedV2,
    CreateBucket => BucketInfo,
    GetBucket => BucketInfo,
    DeleteBucket => (),
    ListBuckets => BucketPage,
    CommitKey => KeyCommitted,
    LookupKey => KeyFound,
    GetLayout => LayoutPage,
    DeleteKeys => KeysDeleted,
    CopyKey => KeyCommitted,
    ListKeys => KeyPage,
    CreateUpload => WriteId,
    GetUpload => UploadInfo,
    CommitPart => KeyCommitted,
    CompleteUpload => UploadCompleted,
    AbortUpload => (),
    ListParts => PartPage,
    ListUploads => UploadPage,
    GetGroup => GroupInfo,
    MembershipChange => (),
    TransferLeadership => (),
    GetOmOverview => OmOverview,
    SetDefaultReplication => (),
    WhereKey => KeyBlocks,
    ListContainerKeys => ContainerKeys,
    CreateVolume => (),
    SetVolume => (),
    DeleteVolume => (),
    ListVolumes => Vec<VolumeInfo>,
    CreateNamespaceBucket => (),
    SetBucketQuota => (),
    DeleteNamespaceBucket => (),
    ListNamespaceBuckets => Vec<NamespaceBucket>,
    RenewTokens => Vec<BlockToken>,
    CheckQuota => (),
}
