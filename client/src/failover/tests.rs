//! Leaders that move, hints that lie, peers that are away, hang or lose their answers.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use wire::ids::SessionId;
use wire::names::BucketName;
use wire::om::{ReleaseBlocks, UserId, WriteContext};
use wire::operator::{CreateVolume, GetGroup, Quota};

use super::*;
use crate::service::call_om;
use crate::session::Session;

/// What a peer does with one call.
#[derive(Debug, Clone)]
enum Mood {
    /// Does it, and answers after so many milliseconds.
    Leads(u64),
    /// Says that another leads: the peer of this place, if any.
    Follows(Option<usize>),
    /// Cannot be reached.
    Away,
    /// Does it, and the answer is lost after so many milliseconds.
    LosesAnswer(u64),
    /// Takes the call and says nothing; does it or not.
    Swallows { has_effect: bool },
    /// Says that the session has ended.
    SessionEnded,
    /// Turns the call away.
    Denies,
}

/// A peer that goes through its moods, one a call, and keeps the last.
struct FakePeer {
    moods: Mutex<VecDeque<Mood>>,
    calls: AtomicU64,
    effects: Arc<AtomicU64>,
}

impl FakePeer {
    fn next(&self) -> Mood {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut moods = self.moods.lock();
        match moods.len() {
            1 => moods[0].clone(),
            _ => moods.pop_front().expect("a peer has a mood"),
        }
    }

    fn set(&self, moods: impl IntoIterator<Item = Mood>) {
        *self.moods.lock() = moods.into_iter().collect();
    }
}

#[async_trait]
impl OmService for FakePeer {
    async fn handle(&self, request: OmRequest) -> Result<OmReply, CallError> {
        let effect = || self.effects.fetch_add(1, Ordering::SeqCst);
        match self.next() {
            Mood::Leads(delay_ms) => {
                effect();
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                match request {
                    OmRequest::OpenSession(_) => Ok(OmReply::OpenSession(SessionId(1))),
                    OmRequest::ReleaseBlocks(_) => Ok(OmReply::ReleaseBlocks(())),
                    OmRequest::CreateVolume(_) => Ok(OmReply::CreateVolume(())),
                    other => panic!("unexpected {}", other.name()),
                }
            }
            Mood::Follows(hint) => Err(Failure::not_leader(hint.map(address)).into()),
            Mood::Away => Err(Failure::new(Status::Retry, "connection refused").into()),
            Mood::LosesAnswer(delay_ms) => {
                effect();
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                Err(Failure::new(Status::Unknown, "connection reset").into())
            }
            Mood::Swallows { has_effect } => {
                if has_effect {
                    effect();
                }
                // As a transport gives up in the end.
                tokio::time::sleep(Duration::from_secs(30)).await;
                Err(Failure::new(Status::Unknown, "no answer in time").into())
            }
            Mood::SessionEnded => Err(Rejection::SessionEnded.into()),
            Mood::Denies => Err(Failure::new(Status::Denied, "the clock is off").into()),
        }
    }
}

fn address(place: usize) -> HostPort {
    HostPort::new(&format!("om{place}:9002")).unwrap()
}

/// Peers with their moods, the client over them, and the count of effects.
struct Group {
    peers: Vec<Arc<FakePeer>>,
    client: Arc<OmClient>,
    effects: Arc<AtomicU64>,
}

fn group(moods: Vec<Vec<Mood>>) -> Group {
    let effects = Arc::new(AtomicU64::new(0));
    let peer = |moods: Vec<Mood>| {
        let moods = Mutex::new(moods.into());
        Arc::new(FakePeer { moods, calls: AtomicU64::new(0), effects: effects.clone() })
    };
    let peers: Vec<Arc<FakePeer>> = moods.into_iter().map(peer).collect();
    let client = OmClient::new(listed(&peers));
    Group { peers, client, effects }
}

fn listed(peers: &[Arc<FakePeer>]) -> Vec<(HostPort, Arc<dyn OmService>)> {
    let named = |(place, peer): (usize, &Arc<FakePeer>)| (address(place), peer.clone() as Arc<dyn OmService>);
    peers.iter().enumerate().map(named).collect()
}

impl Group {
    fn calls(&self) -> Vec<u64> {
        self.peers.iter().map(|peer| peer.calls.swap(0, Ordering::SeqCst)).collect()
    }

    fn effects(&self) -> u64 {
        self.effects.load(Ordering::SeqCst)
    }

    async fn release(&self) -> Result<(), CallError> {
        call_om(&*self.client, release(1)).await
    }
}

fn release(sequence: u64) -> ReleaseBlocks {
    let context = WriteContext { session: SessionId(1), sequence, acknowledged: 1 };
    ReleaseBlocks { context, blocks: Vec::new(), loan: None }
}

fn create_volume() -> CreateVolume {
    let name = BucketName::new("vol").unwrap();
    CreateVolume { name, owner: UserId("u".to_owned()), quota: Quota::default() }
}

fn status(outcome: Result<(), CallError>) -> Status {
    match outcome {
        Err(CallError::Failed(failure)) => failure.status,
        other => panic!("no failure: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn hint_is_followed_and_the_leader_remembered() {
    let follows = vec![Mood::Follows(Some(2))];
    let group = group(vec![follows.clone(), follows, vec![Mood::Leads(0)]]);
    group.release().await.unwrap();
    assert_eq!(group.calls(), [1, 0, 1]);
    group.release().await.unwrap();
    assert_eq!(group.calls(), [0, 0, 1]);
    // It moves.
    group.peers[2].set([Mood::Follows(Some(1))]);
    group.peers[1].set([Mood::Leads(0)]);
    group.release().await.unwrap();
    assert_eq!(group.calls(), [0, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn lying_hints_lead_to_the_leader_in_the_end() {
    let begin = Instant::now();
    let group = group(vec![
        vec![Mood::Follows(Some(1))],
        vec![Mood::Follows(Some(0))],
        vec![Mood::Follows(Some(7)), Mood::Leads(0)],
    ]);
    group.release().await.unwrap();
    assert_eq!(group.calls(), [2, 2, 2]);
    assert!(begin.elapsed() <= PAUSE_FIRST);
}

#[tokio::test(start_paused = true)]
async fn killed_leader_costs_an_election_and_no_failure() {
    let begin = Instant::now();
    for lost in [Mood::Away, Mood::Swallows { has_effect: false }, Mood::Swallows { has_effect: true }] {
        let group =
            group(vec![vec![Mood::Leads(0)], vec![Mood::Follows(Some(0))], vec![Mood::Follows(Some(0))]]);
        group.release().await.unwrap();
        group.peers[0].set([lost]);
        let second = group.peers[1].clone();
        let elected = Instant::now() + Duration::from_secs(2);
        tokio::spawn(async move {
            sleep_until(elected).await;
            second.set([Mood::Leads(5)]);
        });
        let called = Instant::now();
        group.release().await.unwrap();
        assert!(called.elapsed() < Duration::from_millis(2300), "{:?}", called.elapsed());
        // The dead one is asked last from now on.
        let called = Instant::now();
        group.release().await.unwrap();
        assert!(called.elapsed() < Duration::from_millis(10));
    }
    assert!(begin.elapsed() < CALL_DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn dead_follower_is_not_waited_for() {
    let group = group(vec![
        vec![Mood::Swallows { has_effect: false }],
        vec![Mood::Follows(Some(2))],
        vec![Mood::Leads(0)],
    ]);
    let called = Instant::now();
    group.release().await.unwrap();
    assert_eq!(called.elapsed(), TRY_PATIENCE);
    let called = Instant::now();
    group.release().await.unwrap();
    assert_eq!((called.elapsed(), group.calls()), (Duration::ZERO, vec![1, 1, 2]));
}

#[tokio::test(start_paused = true)]
async fn slow_leader_is_waited_for() {
    let follows = vec![Mood::Follows(Some(0))];
    let group = group(vec![vec![Mood::Leads(5000)], follows.clone(), follows]);
    group.release().await.unwrap();
    assert_eq!((group.effects(), group.calls()[0]), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn nobody_there_is_told_in_time() {
    let group = group(vec![vec![Mood::Away], vec![Mood::Away], vec![Mood::Follows(None)]]);
    let called = Instant::now();
    let failed = status(group.release().await);
    assert!(matches!(failed, Status::Retry | Status::NotLeader));
    assert_eq!(called.elapsed(), CALL_DEADLINE);
    assert!(group.calls().iter().all(|calls| *calls < 200));
}

#[tokio::test(start_paused = true)]
async fn one_peer_with_a_wrong_clock_does_not_speak_for_all() {
    let first = group(vec![vec![Mood::Denies], vec![Mood::Leads(0)]]);
    first.release().await.unwrap();
    let all = group(vec![vec![Mood::Denies], vec![Mood::Denies]]);
    assert_eq!(status(all.release().await), Status::Denied);
    assert_eq!(all.calls(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn call_without_a_number_is_not_repeated() {
    let group = group(vec![vec![Mood::Away], vec![Mood::LosesAnswer(1)], vec![Mood::Leads(0)]]);
    assert_eq!(status(call_om(&*group.client, create_volume()).await), Status::Unknown);
    assert_eq!((group.effects(), group.calls()), (1, vec![1, 1, 0]));
    assert!(repeats_safely(&GetGroup {}.into()) && !repeats_safely(&create_volume().into()));
}

#[tokio::test(start_paused = true)]
async fn leader_that_was_added_later_is_reached() {
    let group = group(vec![vec![Mood::Follows(Some(1))], vec![Mood::Leads(0)]]);
    let second = group.peers[1].clone();
    let connect = move |peer: &HostPort| {
        assert_eq!(*peer, address(1));
        second.clone() as Arc<dyn OmService>
    };
    let known = vec![(address(0), group.peers[0].clone() as Arc<dyn OmService>)];
    let client = OmClient::with_connector(known, Box::new(connect));
    call_om(&*client, release(1)).await.unwrap();
    call_om(&*client, release(2)).await.unwrap();
    assert_eq!(group.calls(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn learned_member_is_asked_when_the_others_are_gone() {
    let group = group(vec![vec![Mood::Away], vec![Mood::Leads(0)]]);
    let second = group.peers[1].clone();
    let connect = move |_: &HostPort| second.clone() as Arc<dyn OmService>;
    let known = vec![(address(0), group.peers[0].clone() as Arc<dyn OmService>)];
    let client = OmClient::with_connector(known, Box::new(connect));
    client.learn(&address(1));
    client.learn(&address(1));
    call_om(&*client, release(1)).await.unwrap();
    assert_eq!(group.calls()[1], 1);
    // A sole peer has no others.
    OmClient::sole(group.peers[0].clone()).learn(&address(1));
}

#[tokio::test(start_paused = true)]
async fn leader_is_followed_after_more_replacements_than_peers_are_known() {
    const LAST: usize = 3 * PEERS_MAX;
    // One after the other leads, is replaced, and is gone for good.
    let leader = Arc::new(Mutex::new(0));
    struct Replaced(usize, Arc<Mutex<usize>>);
    #[async_trait]
    impl OmService for Replaced {
        async fn handle(&self, _: OmRequest) -> Result<OmReply, CallError> {
            let leader = *self.1.lock();
            if self.0 == leader {
                return Ok(OmReply::ReleaseBlocks(()));
            }
            // The one before the leader still tells; older ones are no more.
            Err(match self.0 + 1 == leader {
                true => Failure::not_leader(Some(address(leader))).into(),
                false => Failure::new(Status::Retry, "connection refused").into(),
            })
        }
    }
    let connect = {
        let leader = leader.clone();
        move |peer: &HostPort| {
            let place = (0..=LAST).find(|place| address(*place) == *peer).unwrap();
            Arc::new(Replaced(place, leader.clone())) as Arc<dyn OmService>
        }
    };
    let client = OmClient::with_connector(vec![(address(0), connect(&address(0)))], Box::new(connect));
    for next in 1..=LAST {
        *leader.lock() = next;
        call_om(&*client, release(next as u64)).await.unwrap();
        assert!(client.peers.count() <= PEERS_MAX);
        // Members are few: those who are gone are not named any more.
        client.learn(&address(next));
        tokio::time::sleep(NAMED_FOR / 4).await;
    }
}

#[tokio::test(start_paused = true)]
async fn session_that_ended_after_a_lost_answer_leaves_the_outcome_unknown() {
    let group = group(vec![vec![Mood::Leads(0), Mood::LosesAnswer(1), Mood::SessionEnded]]);
    let session = Session::open(group.client.clone()).await.unwrap();
    let outcome = session.command(|context| ReleaseBlocks { context, ..release(1) }).await;
    assert_eq!(status(outcome), Status::Unknown);
    // Opened once, run twice, and not again under another session.
    assert_eq!(group.calls(), [3]);
}

fn moods() -> impl Strategy<Value = Vec<Mood>> {
    let mood = prop_oneof![
        4 => (0u64..3000).prop_map(Mood::Leads),
        4 => prop::option::of(0usize..4).prop_map(Mood::Follows),
        3 => Just(Mood::Away),
        3 => (0u64..3000).prop_map(Mood::LosesAnswer),
        2 => any::<bool>().prop_map(|has_effect| Mood::Swallows { has_effect }),
        1 => Just(Mood::SessionEnded),
        1 => Just(Mood::Denies),
    ];
    prop::collection::vec(mood, 1..6)
}

proptest! {
    /// Whatever the peers do: a call without a number has at most one effect, and only `Unknown` leaves it open whether
    /// there was one.
    #[test]
    fn effects_agree_with_what_the_caller_is_told(
        peers in prop::collection::vec(moods(), 1..4),
        is_numbered: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let group = group(peers);
            let called = Instant::now();
            let outcome = if is_numbered {
                group.release().await
            } else {
                call_om(&*group.client, create_volume()).await
            };
            let effects = group.effects();
            if !is_numbered {
                prop_assert!(effects <= 1, "{effects} effects");
            } else {
                prop_assert!(called.elapsed() <= CALL_DEADLINE);
            }
            match outcome {
                Ok(()) => prop_assert!(effects >= 1),
                Err(CallError::Failed(failure)) if failure.status == Status::Unknown => {}
                Err(error) => prop_assert_eq!(effects, 0, "{} is said to have had no effect", error),
            }
            Ok(())
        })?;
    }
}
