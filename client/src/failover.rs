//! OM and SCM as a group of peers of which one leads: finds the leader, follows it when it moves, and is the one place
//! that repeats calls.
//!
//! ```text
//!   call --> the peer that led last -- answer --------------------------------> caller
//!              |-- "another leads: B" ----> B next
//!              |-- turned away, refused --> the next peer at once
//!              |-- silent for 500 ms -----> the next peer as well; the first may still answer
//!            all asked: a short pause, then another round, until 15 s are over
//! ```
//!
//! A silent peer is not given up but joined by others: a leader behind a stalled disk still answers, and one that was
//! killed or cut off costs no more than the 500 ms. While peers elect, rounds of cheap questions find the new leader
//! within a quarter of a second of its first answer.
//!
//! Invariants:
//! * A call that may have had an effect is repeated only if [`repeats_safely`] (or its SCM twin) says so, and only with
//!   the same numbers; else its outcome is `Unknown`.
//! * A peer has at most one try of a call at a time.
//! * An answer that proves nothing about an earlier try (`SessionEnded`, `Forgotten`, any failure) becomes `Unknown` if
//!   such a try may have had an effect.
//!
//! Not here: connections (see `http`), sessions and their numbers (see `session`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use wire::host::HostPort;
use wire::om::{OmReply, OmRequest, Rejection};
use wire::scm::{ScmReply, ScmRequest};
use wire::status::{Failure, Status};

use crate::service::{CallError, OmService, ScmService};

/// A peer silent for so long is joined by the next one. A commit takes a few milliseconds, and a second may be lost before
/// three must have passed.
pub const TRY_PATIENCE: Duration = Duration::from_millis(500);
/// A try without an answer is given up, so that the same peer may be asked over another connection. Longer than a stalled
/// disk usually takes.
pub const TRY_DEADLINE: Duration = Duration::from_secs(10);
/// A call is answered within this, by whatever failure came last. Elections take one to two seconds.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// The pause between rounds begins with this, doubles ...
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// ... up to this, and is cut by a random part of a half: callers must not ask in step.
const PAUSE_LONGEST: Duration = Duration::from_millis(250);
/// A peer that was silent is asked after the others for this long.
const SILENT_FOR: Duration = Duration::from_secs(2);
/// Peers known at most: hints could name any number of them.
const PEERS_MAX: usize = 16;
/// A peer that was named a member so lately is not dropped for another one: members are named every ten seconds.
const NAMED_FOR: Duration = Duration::from_secs(60);

/// A peer's stub, or its service in this process.
pub type Connector<S> = Box<dyn Fn(&HostPort) -> Arc<S> + Send + Sync>;

/// OM as a group of peers.
pub struct OmClient {
    peers: Peers<dyn OmService>,
}

impl OmClient {
    /// A client of these peers.
    pub fn new(peers: Vec<(HostPort, Arc<dyn OmService>)>) -> Arc<Self> {
        Arc::new(Self { peers: Peers::new(peers, None) })
    }

    /// The same; `connect` makes a stub for a leader that was added to the group later.
    pub fn with_connector(
        peers: Vec<(HostPort, Arc<dyn OmService>)>,
        connect: Connector<dyn OmService>,
    ) -> Arc<Self> {
        Arc::new(Self { peers: Peers::new(peers, Some(connect)) })
    }

    /// A client of the only peer there is: repeats calls while it is starting or busy.
    pub fn sole(om: Arc<dyn OmService>) -> Arc<Self> {
        Arc::new(Self { peers: Peers::sole(om) })
    }

    /// Tells of a member that was added since the configuration was written. Without effect if there is no connector.
    pub fn learn(&self, address: &HostPort) {
        self.peers.learn(address);
    }
}

#[async_trait]
impl OmService for OmClient {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        let name = request.name();
        let ask = |om: Arc<dyn OmService>| -> Try<OmReply> {
            let request = request.clone();
            Box::pin(async move { om.handle(request).await })
        };
        self.peers.call(name, repeats_safely(&request), ask).await
    }
}

/// SCM as a group of peers.
pub struct ScmClient {
    peers: Peers<dyn ScmService>,
}

impl ScmClient {
    /// A client of these peers.
    pub fn new(peers: Vec<(HostPort, Arc<dyn ScmService>)>) -> Arc<Self> {
        Arc::new(Self { peers: Peers::new(peers, None) })
    }

    /// The same; `connect` makes a stub for a leader that was added to the group later.
    pub fn with_connector(
        peers: Vec<(HostPort, Arc<dyn ScmService>)>,
        connect: Connector<dyn ScmService>,
    ) -> Arc<Self> {
        Arc::new(Self { peers: Peers::new(peers, Some(connect)) })
    }

    /// A client of the only peer there is: repeats calls while it is starting or busy.
    pub fn sole(scm: Arc<dyn ScmService>) -> Arc<Self> {
        Arc::new(Self { peers: Peers::sole(scm) })
    }

    /// Tells of a member that was added since the configuration was written. Without effect if there is no connector.
    pub fn learn(&self, address: &HostPort) {
        self.peers.learn(address);
    }
}

#[async_trait]
impl ScmService for ScmClient {
    async fn handle(&self, request: ScmRequest) -> Result<ScmReply, Failure> {
        let name = request.name();
        let ask = |scm: Arc<dyn ScmService>| -> Try<ScmReply> {
            let request = request.clone();
            Box::pin(async move { scm.handle(request).await.map_err(CallError::Failed) })
        };
        let outcome = self.peers.call(name, scm_repeats_safely(&request), ask).await;
        outcome.map_err(|error| match error {
            CallError::Failed(failure) => failure,
            CallError::Rejected(rejection) => Failure::new(Status::Internal, rejection.to_string()),
        })
    }
}

/// Whether a call to OM may be made again, also of another peer, when nobody knows if it had its effect.
///
/// True for what has no effect, and for what has one only once: commands by (session, sequence), `OpenSession` by its
/// nonce, the ending of a session (ids never return), `DegradeBlocks` (one logged decision), and the users of the
/// configuration (every node puts the same ones). Operators' changes have no number: a repeat could undo what another
/// operator did in between, or answer "exists" to the one who created it. They are told that the outcome is unknown.
pub fn repeats_safely(request: &OmRequest) -> bool {
    use OmRequest as Q;
    match request {
        Q::RenewSession(_)
        | Q::RefreshLocations(_)
        | Q::GetSigningKey(_)
        | Q::SignV2(_)
        | Q::GetBucket(_)
        | Q::ListBuckets(_)
        | Q::LookupKey(_)
        | Q::GetLayout(_)
        | Q::ListKeys(_)
        | Q::GetUpload(_)
        | Q::ListParts(_)
        | Q::ListUploads(_)
        | Q::GetGroup(_)
        | Q::GetOmOverview(_)
        | Q::WhereKey(_)
        | Q::ListContainerKeys(_)
        | Q::ListVolumes(_)
        | Q::ListNamespaceBuckets(_)
        | Q::RenewTokens(_)
        | Q::CheckQuota(_) => true,
        Q::TakeLoan(_)
        | Q::ReleaseBlocks(_)
        | Q::CreateBucket(_)
        | Q::DeleteBucket(_)
        | Q::CommitKey(_)
        | Q::DeleteKeys(_)
        | Q::CopyKey(_)
        | Q::CreateUpload(_)
        | Q::CommitPart(_)
        | Q::CompleteUpload(_)
        | Q::AbortUpload(_) => true,
        Q::OpenSession(_)
        | Q::EndSession(_)
        | Q::DegradeBlocks(_)
        | Q::PutUser(_)
        | Q::RetainAccessKeys(_) => true,
        Q::MembershipChange(_)
        | Q::TransferLeadership(_)
        | Q::SetDefaultReplication(_)
        | Q::CreateVolume(_)
        | Q::SetVolume(_)
        | Q::DeleteVolume(_)
        | Q::CreateNamespaceBucket(_)
        | Q::SetBucketQuota(_)
        | Q::DeleteNamespaceBucket(_) => false,
    }
}

/// The same for SCM: grants and deletions carry OM's number, a degrade and a retirement are decided once, and what a
/// datanode reports is absolute and sent by it alone, one report after the other.
pub fn scm_repeats_safely(request: &ScmRequest) -> bool {
    use ScmRequest as Q;
    match request {
        Q::LocateContainers(_)
        | Q::ListRetirable(_)
        | Q::GetGroup(_)
        | Q::ListDatanodes(_)
        | Q::ListContainers(_)
        | Q::GetContainers(_)
        | Q::ListPipelines(_)
        | Q::GetRepair(_)
        | Q::GetScmOverview(_) => true,
        Q::GrantLease(_) | Q::LogDeletions(_) => true,
        Q::SyncLeases(_)
        | Q::DegradeContainer(_)
        | Q::RetireContainer(_)
        | Q::RegisterDatanode(_)
        | Q::Heartbeat(_) => true,
        Q::MembershipChange(_)
        | Q::TransferLeadership(_)
        | Q::SetDatanode(_)
        | Q::CloseContainer(_)
        | Q::RaiseReplication(_) => false,
    }
}

/// One try at one peer.
type Try<R> = Pin<Box<dyn Future<Output = Result<R, CallError>> + Send>>;

struct Peers<S: ?Sized> {
    known: Mutex<Known<S>>,
    connect: Option<Connector<S>>,
}

struct Known<S: ?Sized> {
    /// By place, by which a try names its peer. A place is never given twice; one that is gone is passed over.
    peers: BTreeMap<usize, Peer<S>>,
    next: usize,
    leader: Option<usize>,
}

struct Peer<S: ?Sized> {
    /// None for a sole peer, which nobody names.
    address: Option<HostPort>,
    service: Arc<S>,
    /// It was silent: asked after the others until then.
    silent_until: Option<Instant>,
    /// Since when it has given no answer that only a living peer gives.
    failing_since: Option<Instant>,
    /// When somebody last said that it is a member.
    named_at: Option<Instant>,
}

impl<S: ?Sized> Known<S> {
    fn new(peers: impl IntoIterator<Item = (Option<HostPort>, Arc<S>)>) -> Self {
        let mut known = Self { peers: BTreeMap::new(), next: 0, leader: None };
        for (address, service) in peers {
            known.add(address, service, None);
        }
        known
    }

    fn add(&mut self, address: Option<HostPort>, service: Arc<S>, named_at: Option<Instant>) -> usize {
        let place = self.next;
        self.next += 1;
        self.peers
            .insert(place, Peer { address, service, silent_until: None, failing_since: None, named_at });
        place
    }

    /// The peer at an address, which somebody has just named a member.
    fn find_named(&mut self, address: &HostPort) -> Option<usize> {
        let (place, peer) = self.peers.iter_mut().find(|(_, peer)| peer.address.as_ref() == Some(address))?;
        peer.named_at = Some(Instant::now());
        Some(*place)
    }

    /// Whether there is room for another peer, if need be in the place of one that is no member any more: of those that
    /// nobody names the one that has failed longest, or else was named the longest ago.
    fn make_room(&mut self) -> bool {
        if self.peers.len() < PEERS_MAX {
            return true;
        }
        let now = Instant::now();
        let is_named = |peer: &Peer<S>| peer.named_at.is_some_and(|at| now.duration_since(at) < NAMED_FOR);
        let leader = self.leader;
        let unnamed = self.peers.iter().filter(|(place, peer)| leader != Some(**place) && !is_named(peer));
        let order = |peer: &Peer<S>| (peer.failing_since.is_none(), peer.failing_since, peer.named_at);
        let Some(place) = unnamed.min_by_key(|(_, peer)| order(peer)).map(|(place, _)| *place) else {
            return false;
        };
        if let Some(Peer { address: Some(address), .. }) = self.peers.remove(&place) {
            tracing::info!(peer = %address, "a peer that nobody names a member any more is forgotten");
        }
        true
    }

    fn note_alive(&mut self, place: usize) {
        if let Some(peer) = self.peers.get_mut(&place) {
            (peer.silent_until, peer.failing_since) = (None, None);
        }
    }
}

impl<S: ?Sized + Send + Sync> Peers<S> {
    fn new(peers: Vec<(HostPort, Arc<S>)>, connect: Option<Connector<S>>) -> Self {
        let peers = peers.into_iter().map(|(address, service)| (Some(address), service));
        Self { known: Mutex::new(Known::new(peers)), connect }
    }

    fn sole(service: Arc<S>) -> Self {
        Self { known: Mutex::new(Known::new([(None, service)])), connect: None }
    }

    /// Whom to ask, in order: who led last, then the others, those that were silent last.
    fn order(&self) -> VecDeque<usize> {
        let known = self.known.lock();
        let now = Instant::now();
        let is_silent = |place: &usize| known.peers[place].silent_until.is_some_and(|until| until > now);
        let mut places: Vec<usize> = known.peers.keys().copied().collect();
        places.sort_by_key(|place| (is_silent(place), known.leader != Some(*place)));
        places.into()
    }

    /// None of a peer that was dropped meanwhile.
    fn service(&self, place: usize) -> Option<Arc<S>> {
        self.known.lock().peers.get(&place).map(|peer| peer.service.clone())
    }

    fn count(&self) -> usize {
        self.known.lock().peers.len()
    }

    fn note_leader(&self, place: usize) {
        let mut known = self.known.lock();
        if known.peers.contains_key(&place) {
            known.leader = Some(place);
            known.note_alive(place);
        }
    }

    /// `place` does not lead. Answers where the peer is that it says leads.
    fn note_follower(&self, place: usize, hint: Option<&HostPort>) -> Option<usize> {
        let mut known = self.known.lock();
        known.note_alive(place);
        if known.leader == Some(place) {
            known.leader = None;
        }
        let hint = hint?;
        if let Some(named) = known.find_named(hint) {
            return Some(named);
        }
        let connect = self.connect.as_ref()?;
        if !known.make_room() {
            return None;
        }
        tracing::info!(peer = %hint, "a peer that is not configured here leads");
        Some(known.add(Some(hint.clone()), connect(hint), Some(Instant::now())))
    }

    /// A member of the group that may not be known yet: it may lead when all that are known are gone.
    fn learn(&self, address: &HostPort) {
        let mut known = self.known.lock();
        let Some(connect) = self.connect.as_ref() else { return };
        if known.find_named(address).is_some() || !known.make_room() {
            return;
        }
        tracing::info!(peer = %address, "a member that is not configured here");
        known.add(Some(address.clone()), connect(address), Some(Instant::now()));
    }

    /// `place` gave an answer that is none of a peer that works.
    fn note_failed(&self, place: usize) {
        let mut known = self.known.lock();
        if let Some(peer) = known.peers.get_mut(&place) {
            peer.failing_since.get_or_insert_with(Instant::now);
        }
    }

    /// Remembers who has been asked a while ago and not yet answered.
    fn note_silent(&self, in_flight: &BTreeMap<usize, Instant>) {
        let now = Instant::now();
        let mut known = self.known.lock();
        for (place, _) in in_flight.iter().filter(|(_, since)| now.duration_since(**since) >= TRY_PATIENCE) {
            if let Some(peer) = known.peers.get_mut(place) {
                peer.silent_until = Some(now + SILENT_FOR);
                peer.failing_since.get_or_insert(now);
            }
        }
    }

    /// Makes a call until somebody answers it.
    async fn call<R: Send>(
        &self,
        name: &'static str,
        is_repeatable: bool,
        ask: impl Fn(Arc<S>) -> Try<R> + Send + Sync,
    ) -> Result<R, CallError> {
        let end = Instant::now() + CALL_DEADLINE;
        let mut call = Call::new(self.order());
        let mut tries = FuturesUnordered::new();
        loop {
            let may_ask = is_repeatable || tries.is_empty();
            if may_ask && Instant::now() >= call.next_at {
                match call.queue.pop_front() {
                    Some(place) if call.in_flight.contains_key(&place) => continue,
                    Some(place) => {
                        let Some(service) = self.service(place) else { continue };
                        call.begin(place);
                        let work = ask(service);
                        let is_patient = !is_repeatable || self.count() == 1;
                        tries.push(async move { (place, within(work, is_patient).await) });
                    }
                    None if call.is_hopeless && tries.is_empty() => return Err(call.last_word(name)),
                    None => call.end_round(self.order()),
                }
            }
            let may_ask = is_repeatable || tries.is_empty();
            tokio::select! {
                biased;
                Some((place, outcome)) = tries.next() => {
                    call.in_flight.remove(&place);
                    match outcome {
                        Ok(reply) => {
                            self.note_leader(place);
                            return Ok(reply);
                        }
                        Err(CallError::Rejected(rejection)) => {
                            self.note_leader(place);
                            return Err(call.rejected(rejection));
                        }
                        Err(CallError::Failed(failure)) => {
                            if call.is_final(&failure, is_repeatable) {
                                return Err(call.failed(failure));
                            }
                            if failure.status == Status::NotLeader {
                                let named = self.note_follower(place, failure.leader.as_ref());
                                call.follow(named);
                            } else {
                                self.note_failed(place);
                            }
                            call.last = Some(failure);
                        }
                    }
                }
                () = sleep_until(call.next_at), if may_ask => {
                    if self.count() > 1 {
                        self.note_silent(&call.in_flight);
                    }
                }
                () = sleep_until(end), if may_ask => return Err(call.last_word(name)),
            }
        }
    }
}

async fn within<R>(work: Try<R>, is_patient: bool) -> Result<R, CallError> {
    if is_patient {
        return work.await;
    }
    let late = |_| Failure::new(Status::Unknown, "a peer does not answer");
    timeout(TRY_DEADLINE, work).await.map_err(late)?
}

/// A call on its way.
struct Call {
    /// Whom to ask next, in this round.
    queue: VecDeque<usize>,
    /// Who was asked in this round.
    asked: BTreeSet<usize>,
    /// Whose answer is awaited, and since when.
    in_flight: BTreeMap<usize, Instant>,
    /// When the next may be asked.
    next_at: Instant,
    pause: Duration,
    /// No peer of this round said anything that time could change.
    is_hopeless: bool,
    /// A try ended without saying whether it had an effect.
    may_have_happened: bool,
    last: Option<Failure>,
}

impl Call {
    fn new(queue: VecDeque<usize>) -> Self {
        Self {
            queue,
            asked: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            next_at: Instant::now(),
            pause: PAUSE_FIRST,
            is_hopeless: true,
            may_have_happened: false,
            last: None,
        }
    }

    fn begin(&mut self, place: usize) {
        let now = Instant::now();
        self.asked.insert(place);
        self.in_flight.insert(place, now);
        self.next_at = now + TRY_PATIENCE;
    }

    fn end_round(&mut self, queue: VecDeque<usize>) {
        self.queue = queue;
        self.asked.clear();
        self.is_hopeless = true;
        self.next_at = Instant::now() + jittered(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_LONGEST);
    }

    /// Asks the named peer next, unless it was asked in this round: hints may lie, or lead in a circle.
    fn follow(&mut self, named: Option<usize>) {
        let Some(named) = named.filter(|named| !self.asked.contains(named)) else { return };
        self.queue.retain(|place| *place != named);
        self.queue.push_front(named);
    }

    /// Whether a failure ends the call. If not, the next peer is asked at once.
    fn is_final(&mut self, failure: &Failure, is_repeatable: bool) -> bool {
        self.next_at = Instant::now();
        match failure.status {
            Status::Retry | Status::NotLeader | Status::NotReady => self.is_hopeless = false,
            Status::Unknown => {
                self.may_have_happened = true;
                self.is_hopeless = false;
                return !is_repeatable;
            }
            // One peer whose clock or key is wrong does not speak for the others.
            Status::Denied => {}
            Status::DiskFull
            | Status::Invalid
            | Status::NotFound
            | Status::Refused
            | Status::Corrupt
            | Status::Internal
            | Status::TooSlow => return true,
        }
        false
    }

    fn is_unsure(&self) -> bool {
        self.may_have_happened || !self.in_flight.is_empty()
    }

    fn rejected(&self, rejection: Rejection) -> CallError {
        let proves_nothing = matches!(rejection, Rejection::SessionEnded | Rejection::Forgotten);
        if proves_nothing && self.is_unsure() {
            let message = format!("{rejection}, and an earlier try of the command may have had its effect");
            return Failure::new(Status::Unknown, message).into();
        }
        rejection.into()
    }

    fn failed(&self, failure: Failure) -> CallError {
        let status = if self.is_unsure() { Status::Unknown } else { failure.status };
        Failure { status, ..failure }.into()
    }

    /// The failure of a call that nobody answered.
    fn last_word(&mut self, name: &str) -> CallError {
        let silence = || Failure::new(Status::Retry, "no peer answers");
        let failure = self.last.take().unwrap_or_else(silence);
        tracing::debug!(call = name, %failure, "a call was given up");
        self.failed(failure)
    }
}

/// Between a half of `pause` and all of it.
fn jittered(pause: Duration) -> Duration {
    const PARTS: u64 = 1024;
    let half = pause / 2;
    half + half * (wire::random::u64() % PARTS) as u32 / PARTS as u32
}

#[cfg(test)]
mod tests;
