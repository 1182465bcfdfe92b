//! The one authorizer: may this requester do this to that?
//!
//! The rule of the first version: any user may make buckets and list its own; on a bucket and what is in it, the
//! owner may do everything and nobody else anything. Root is no exception, as in S3. Policies, ACLs and public access
//! blocks will be judged here too, which is why every action has its own name already.
//!
//! Invariants:
//! * Default deny: only what a rule allows is allowed, and an action on a resource of the wrong kind is denied.
//! * A copy is two decisions, one for each side; a version is another action than the current object.
//!
//! Not here: which request is which action (the gateway's routing table says).

use crate::error::AuthError;
use crate::identity::Identity;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requester<'a> {
    /// Nobody in particular.
    Anonymous,
    /// A user whose signature was verified.
    User(&'a Identity),
}

/// What is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource<'a> {
    /// The service as a whole: buckets that do not exist yet, the list of all.
    Service,
    /// A bucket.
    Bucket {
        /// Canonical user id of its owner.
        owner: &'a str,
    },
    /// An object in a bucket, or one that is to be.
    Object {
        /// Canonical user id of the bucket's owner.
        owner: &'a str,
    },
}

/// The kind of resource an action is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The service as a whole.
    Service,
    /// A bucket.
    Bucket,
    /// An object.
    Object,
}

/// Declares the actions: variant, scope and words for its documentation. The variant's name is S3's.
macro_rules! actions {
    ($($scope:ident { $($action:ident)* })*) => {
        /// Everything that can be asked of S3, by the names that policies use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action {
            $($(
                #[doc = concat!("`s3:", stringify!($action), "`")]
                $action,
            )*)*
        }

        impl Action {
            /// All actions.
            pub const ALL: &'static [Action] = &[$($(Action::$action,)*)*];

            /// The name in policies: `s3:GetObject`.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Action::$action => concat!("s3:", stringify!($action)),)*)*
                }
            }

            /// The kind of resource it is about.
            pub const fn scope(self) -> Scope {
                match self {
                    $($(Action::$action => Scope::$scope,)*)*
                }
            }
        }
    };
}

actions! {
    Service {
        CreateBucket
        ListAllMyBuckets
    }
    Bucket {
        DeleteBucket
        DeleteBucketPolicy
        DeleteBucketWebsite
        GetAccelerateConfiguration
        GetAnalyticsConfiguration
        GetBucketAcl
        GetBucketCORS
        GetBucketLocation
        GetBucketLogging
        GetBucketNotification
        GetBucketObjectLockConfiguration
        GetBucketOwnershipControls
        GetBucketPolicy
        GetBucketPolicyStatus
        GetBucketPublicAccessBlock
        GetBucketRequestPayment
        GetBucketTagging
        GetBucketVersioning
        GetBucketWebsite
        GetEncryptionConfiguration
        GetIntelligentTieringConfiguration
        GetInventoryConfiguration
        GetLifecycleConfiguration
        GetMetricsConfiguration
        GetReplicationConfiguration
        ListBucket
        ListBucketMultipartUploads
        ListBucketVersions
        PutAccelerateConfiguration
        PutAnalyticsConfiguration
        PutBucketAcl
        PutBucketCORS
        PutBucketLogging
        PutBucketNotification
        PutBucketObjectLockConfiguration
        PutBucketOwnershipControls
        PutBucketPolicy
        PutBucketPublicAccessBlock
        PutBucketRequestPayment
        PutBucketTagging
        PutBucketVersioning
        PutBucketWebsite
        PutEncryptionConfiguration
        PutIntelligentTieringConfiguration
        PutInventoryConfiguration
        PutLifecycleConfiguration
        PutMetricsConfiguration
        PutReplicationConfiguration
    }
    Object {
        AbortMultipartUpload
        BypassGovernanceRetention
        DeleteObject
        DeleteObjectTagging
        DeleteObjectVersion
        DeleteObjectVersionTagging
        GetObject
        GetObjectAcl
        GetObjectAttributes
        GetObjectLegalHold
        GetObjectRetention
        GetObjectTagging
        GetObjectTorrent
        GetObjectVersion
        GetObjectVersionAcl
        GetObjectVersionAttributes
        GetObjectVersionTagging
        ListMultipartUploadParts
        PutObject
        PutObjectAcl
        PutObjectLegalHold
        PutObjectRetention
        PutObjectTagging
        PutObjectVersionAcl
        PutObjectVersionTagging
        RestoreObject
    }
}

impl Resource<'_> {
    /// What kind of resource it is.
    pub fn scope(&self) -> Scope {
        match self {
            Resource::Service => Scope::Service,
            Resource::Bucket { .. } => Scope::Bucket,
            Resource::Object { .. } => Scope::Object,
        }
    }
}

/// Allows, or refuses with [`AuthError::AccessDenied`].
pub fn authorize(requester: Requester<'_>, action: Action, resource: Resource<'_>) -> Result<(), AuthError> {
    let allowed = action.scope() == resource.scope()
        && match (requester, resource) {
            (Requester::Anonymous, Resource::Service | Resource::Bucket { .. } | Resource::Object { .. }) => {
                false
            }
            (Requester::User(_), Resource::Service) => true,
            // An owner without a name is nobody's match, whatever went wrong upstream.
            (Requester::User(user), Resource::Bucket { owner } | Resource::Object { owner }) => {
                !owner.is_empty() && user.user_id == owner
            }
        };
    if allowed { Ok(()) } else { Err(AuthError::AccessDenied) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(user_id: &str) -> Identity {
        Identity {
            access_key: "AK".to_owned(),
            user_id: user_id.to_owned(),
            display_name: user_id.to_owned(),
            email: None,
        }
    }

    /// A resource of the action's own kind.
    fn resource(action: Action, owner: &str) -> Resource<'_> {
        match action.scope() {
            Scope::Service => Resource::Service,
            Scope::Bucket => Resource::Bucket { owner },
            Scope::Object => Resource::Object { owner },
        }
    }

    #[test]
    fn owner_may_do_everything_and_strangers_nothing() {
        let (owner, stranger) = (user("main"), user("alt"));
        for &action in Action::ALL {
            let resource = resource(action, "main");
            assert_eq!(authorize(Requester::User(&owner), action, resource), Ok(()), "{}", action.name());
            let expected =
                if action.scope() == Scope::Service { Ok(()) } else { Err(AuthError::AccessDenied) };
            assert_eq!(
                authorize(Requester::User(&stranger), action, resource),
                expected,
                "{}",
                action.name()
            );
            assert!(authorize(Requester::Anonymous, action, resource).is_err(), "{}", action.name());
        }
    }

    #[test]
    fn an_action_on_the_wrong_kind_of_resource_is_denied() {
        let owner = user("main");
        for &action in Action::ALL {
            for resource in
                [Resource::Service, Resource::Bucket { owner: "main" }, Resource::Object { owner: "main" }]
            {
                let allowed = authorize(Requester::User(&owner), action, resource).is_ok();
                assert_eq!(allowed, action.scope() == resource.scope(), "{}", action.name());
            }
        }
    }

    #[test]
    fn nobody_owns_what_has_no_owner() {
        assert!(
            authorize(Requester::User(&user("")), Action::GetObject, Resource::Object { owner: "" }).is_err()
        );
    }

    #[test]
    fn names_are_those_of_policies() {
        assert_eq!(Action::GetObject.name(), "s3:GetObject");
        assert_eq!(Action::GetBucketCORS.name(), "s3:GetBucketCORS");
    }
}
