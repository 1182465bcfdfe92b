//! Who a user is.

/// A user, as one of its access keys names it. Root is a user like any other: it owns what it makes, and no more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The access key id the request was signed with.
    pub access_key: String,
    /// Canonical user id: the one that owns buckets.
    pub user_id: String,
    /// Name shown beside the id.
    pub display_name: String,
    /// Address, if the configuration names one.
    pub email: Option<String>,
}
