//! Random lives of a store and the spec: every call, every level, crashes, clocks.
//!
//! After a crash the spec allows exactly what the levels allow. The log is a sequence, so a prefix of the written records
//! survives. It holds at least everything acknowledged, or shown, at a level that survives the crash. The keys show which
//! prefix it is.
//!
//! `PROPTEST_CASES=100000 cargo test --release --test it model` runs more of them. A failure prints its
//! shrunk case, and its seed goes to `tests/it/model-regressions.txt`, which every later run tries first.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use onlyonce::backend::{self, Backend, Request};
use onlyonce::testing::Sim;
use onlyonce::{Durability, ErrorKind, OnDrop, Outcome, State, Store, Token};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

use crate::machine::Machine;
use crate::spec::{self, Ask, Call, End, Is, Key, Now, OnIt, Ran, Shown, Told, Word};

const KEYS: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];
/// The first of them lie in no namespace.
const ROOT: usize = 4;
/// The others: one namespace lies in another, and one has versions.
const SPACES: [(&str, &[usize]); 3] =
    [("outer/", &[4, 5]), ("outer/inner/", &[5]), ("plans/", &[VERSIONED])];
const VERSIONED: usize = 6;
const DAY: u64 = 86_400_000;
/// Inputs and results of steps that have ended.
type Steps = BTreeMap<u8, (Option<u8>, Vec<u8>)>;

/// Names of steps.
const STEPS: u8 = 3;

#[derive(Clone, Debug)]
enum Op {
    Claim(usize, Ask),
    Mark(usize, Ask),
    /// An outcome without a claim; whether it is a failure.
    Record(usize, Ask, bool),
    /// The number selects one of the existing questions, guards, ….
    Word(usize, Word),
    DropQuestion(usize),
    /// Calls made together: any of those that can be.
    Batch(Vec<Op>),
    End(usize, End),
    TooLarge(usize),
    Drop(usize),
    /// The owner holds its key.
    Park(usize),
    Progress(usize, u8),
    /// A step of that name, announced or not, whose work returns so many bytes, or fails.
    WorkStep(usize, u8, Option<u8>, bool, Option<u16>),
    Detach(usize, u64),
    /// By one of the tickets there ever were.
    Attach(usize),
    RenewQuestion(usize, u64),
    /// An operator interrupts an attempt that was shown.
    Revoke(usize),
    OnDrop(usize, bool),
    Renew(usize, u64),
    RenewAny(usize, u64),
    Resolve(usize, End),
    Forget(usize),
    /// A look, and then a forget by what it has shown.
    ForgetSeen(usize),
    ForgetClaimed(usize, usize),
    /// Drops a namespace.
    DropSpace(usize),
    /// The namespace with versions is used by another one.
    NewVersion,
    Get(usize),
    Iter,
    /// Reads everything, and finds it whole.
    Verify,
    /// Rebuilds the index from the log.
    Rebuild,
    /// Moves live records, up to this many bytes.
    Compact(u64),
    Sync,
    Step,
    /// A second passes, and the background does its work.
    Settle,
    Advance(u64),
    JumpWall(i64),
    Restart(Restart),
}

#[derive(Clone, Copy, Debug)]
enum Restart {
    Close,
    /// Drops every handle; the last one closes the store.
    DropAll,
    Kill,
    PowerLoss,
    PowerLossKeeping(u64),
}

fn level() -> impl Strategy<Value = Durability> {
    prop_oneof![Just(Durability::Sync), Just(Durability::Flush), Just(Durability::Lazy)]
}

fn ask() -> impl Strategy<Value = Ask> {
    let keep = prop_oneof![3 => Just(None), 1 => Just(Some(20_000)), 1 => Just(Some(DAY / 2))];
    let remember = prop_oneof![2 => Just(None), 1 => Just(Some(70_000)), 1 => Just(Some(2 * DAY))];
    let lease = prop_oneof![2 => Just(None), 1 => Just(Some(10_000)), 1 => Just(Some(60_000))];
    let hold = prop_oneof![3 => Just(None), 1 => Just(Some(false)), 1 => Just(Some(true))];
    let max = prop_oneof![4 => Just(None), 1 => (1..4_u32).prop_map(Some)];
    let print = prop_oneof![2 => Just(None), 1 => (0..2_u8).prop_map(Some)];
    let delay = prop_oneof![3 => Just(None), 1 => Just(Some(8_000)), 1 => Just(Some(DAY / 2))];
    let levels = (level(), level());
    (print, lease, hold, max, keep, remember, delay, levels, any::<bool>(), 0..8_u8).prop_map(
        |(print, lease, hold, max, keep, remember, delay, levels, drop_aborts, strict)| Ask {
            print,
            lease,
            hold,
            max,
            keep,
            remember,
            delay,
            // Now and then Hold with a weaker level, which is refused.
            claim_level: if hold == Some(true) && strict > 0 { Durability::Sync } else { levels.0 },
            level: levels.1,
            drop_aborts,
        },
    )
}

fn end() -> impl Strategy<Value = End> {
    let value = || {
        (any::<u8>(), prop_oneof![Just(0_usize), Just(10), Just(2000)])
            .prop_map(|(byte, len)| vec![byte; len])
    };
    let keep = || prop_oneof![3 => Just(None), 1 => Just(Some(5000)), 1 => Just(Some(2 * DAY))];
    prop_oneof![
        2 => (value(), keep()).prop_map(|(value, keep)| End::Success { value, keep }),
        1 => (value(), keep()).prop_map(|(value, keep)| End::Failure { value, keep }),
        2 => Just(End::Nothing),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let key = || prop_oneof![3 => 0..ROOT, 1 => ROOT..KEYS.len()];
    let one = || 0..8_usize;
    let word =
        prop_oneof![3 => Just(Word::TakeOver), 2 => Just(Word::NotApplied), 1 => Just(Word::Hold)];
    let time =
        prop_oneof![Just(500_u64), Just(6000), Just(11_000), Just(61_000), Just(DAY / 2 + 1)];
    let jump =
        prop_oneof![Just(-3000_i64), Just(5000), Just(-3 * DAY as i64), Just(3 * DAY as i64)];
    let restart = prop_oneof![
        Just(Restart::Close),
        Just(Restart::DropAll),
        Just(Restart::Kill),
        Just(Restart::Kill),
        Just(Restart::PowerLoss),
        any::<u64>().prop_map(Restart::PowerLossKeeping),
        any::<u64>().prop_map(Restart::PowerLossKeeping),
    ];
    let item = prop_oneof![
        4 => (key(), ask()).prop_map(|(key, ask)| Op::Claim(key, ask)),
        2 => (key(), ask()).prop_map(|(key, ask)| Op::Mark(key, Ask { hold: None, ..ask })),
        2 => (one(), prop_oneof![Just(Word::TakeOver), Just(Word::NotApplied)])
            .prop_map(|(at, word)| Op::Word(at, word)),
        4 => (one(), end()).prop_map(|(at, end)| Op::End(at, end)),
        1 => key().prop_map(Op::Forget),
    ];
    // Now and then of one kind alone, which has a call of its own.
    let items = prop_oneof![
        3 => vec(item, 1..6),
        1 => vec((key(), ask()).prop_map(|(key, ask)| Op::Claim(key, ask)), 2..5),
        1 => vec((one(), end()).prop_map(|(at, end)| Op::End(at, end)), 2..5),
        1 => vec(key().prop_map(Op::Forget), 2..5),
    ];
    prop_oneof![
        4 => items.prop_map(Op::Batch),
        12 => (key(), ask()).prop_map(|(key, ask)| Op::Claim(key, ask)),
        2 => (key(), ask()).prop_map(|(key, ask)| Op::Mark(key, Ask { hold: None, ..ask })),
        2 => (key(), ask(), any::<bool>())
            .prop_map(|(key, ask, failure)| Op::Record(key, Ask { hold: None, ..ask }, failure)),
        5 => (one(), word).prop_map(|(at, word)| Op::Word(at, word)),
        1 => one().prop_map(Op::DropQuestion),
        8 => (one(), end()).prop_map(|(at, end)| Op::End(at, end)),
        1 => one().prop_map(Op::TooLarge),
        4 => one().prop_map(Op::Drop),
        1 => one().prop_map(Op::Park),
        3 => (one(), any::<u8>()).prop_map(|(at, byte)| Op::Progress(at, byte)),
        4 => (
            one(),
            0..STEPS,
            prop_oneof![2 => Just(None), 3 => Just(Some(0)), 1 => Just(Some(1))],
            any::<bool>(),
            prop_oneof![1 => Just(None), 3 => (0..900_u16).prop_map(Some)],
        )
            .prop_map(|(at, name, input, announced, value)| {
                Op::WorkStep(at, name, input, announced, value)
            }),
        2 => (one(), prop_oneof![Just(9_000_u64), Just(DAY)]).prop_map(|(at, lease)| Op::Detach(at, lease)),
        3 => one().prop_map(Op::Attach),
        1 => (one(), Just(30_000_u64)).prop_map(|(at, lease)| Op::RenewQuestion(at, lease)),
        1 => one().prop_map(Op::Revoke),
        1 => (one(), any::<bool>()).prop_map(|(at, aborts)| Op::OnDrop(at, aborts)),
        1 => (one(), Just(30_000_u64)).prop_map(|(at, lease)| Op::Renew(at, lease)),
        1 => (one(), Just(30_000_u64)).prop_map(|(at, lease)| Op::RenewAny(at, lease)),
        2 => (one(), end()).prop_map(|(at, end)| Op::Resolve(at, end)),
        1 => key().prop_map(Op::Forget),
        1 => key().prop_map(Op::ForgetSeen),
        1 => (key(), one()).prop_map(|(key, at)| Op::ForgetClaimed(key, at)),
        2 => (0..SPACES.len()).prop_map(Op::DropSpace),
        1 => Just(Op::NewVersion),
        2 => key().prop_map(Op::Get),
        1 => Just(Op::Iter),
        1 => Just(Op::Verify),
        1 => Just(Op::Rebuild),
        2 => prop_oneof![Just(0_u64), Just(3000), Just(u64::MAX)].prop_map(Op::Compact),
        1 => Just(Op::Sync),
        2 => Just(Op::Step),
        1 => Just(Op::Settle),
        3 => time.prop_map(Op::Advance),
        1 => jump.prop_map(Op::JumpWall),
        3 => restart.prop_map(Op::Restart),
    ]
}

/// The stage of a key on its way to absence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Stage {
    Kept,
    Remembered,
    Gone,
}

impl Stage {
    fn of(said: &Told) -> Self {
        match said {
            Told::State(None) => Stage::Gone,
            Told::State(Some(Shown::Expired)) => Stage::Remembered,
            _ => Stage::Kept,
        }
    }
}

/// One moment on all clocks, as a note of the log may have caught it.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Moment {
    boot: u64,
    tick: u64,
    wall: u64,
    store: (u64, u64),
}

struct Guard {
    key: usize,
    token: u64,
    ask: Ask,
    aborts: bool,
    /// By a ticket: a drop leaves the claim as it was, whatever else was said.
    is_attached: bool,
}

struct Question {
    key: usize,
    id: u64,
    seen: Option<u64>,
    ask: Ask,
}

/// In which state an attempt was shown last.
struct Sight {
    is: Discriminant<Shown>,
    /// When the record was made by which it was shown, as in [`World`].
    recorded: Option<u64>,
    restarts: u64,
}

/// The store under test, and the state of the spec.
struct World {
    sim: Sim,
    machine: Option<Machine>,
    keys: [Option<Key>; KEYS.len()],
    guards: Vec<Guard>,
    questions: Vec<Question>,
    /// Attempts that were shown at any time: key and token.
    attempts: Vec<(usize, u64)>,
    /// How each of them was shown, by token.
    sights: BTreeMap<u64, Sight>,
    /// At which tick of this open each key was changed last; `None`: before it.
    changed: [Option<u64>; KEYS.len()],
    /// At which tick a lapse was recorded since, which changes nothing: what follows in that millisecond is not told from it.
    lapsed: [Option<u64>; KEYS.len()],
    /// Tickets that were made at any time: key, token and text.
    tickets: Vec<(usize, u64, String)>,
    next_question: u64,
    /// The version that the callers use of the namespace with versions.
    version: u64,

    /// The written records in order: the key, and its state from then on.
    log: Vec<(usize, Option<Key>)>,
    /// The least number of them that survives a kill, and a power loss.
    written: usize,
    durable: usize,
    /// The newest entry of each key, those of ended steps apart.
    newest: [usize; KEYS.len()],
    /// Ended steps of this open: key, name, entry and level.
    steps: Vec<(usize, u8, usize, Durability)>,
    /// The latest stage seen of each key in this open: kept, remembered, absent.
    stage: [Stage; KEYS.len()],
    /// The time until which an older outcome of the key may be remembered: the memory of a later one lasts no shorter.
    older_memory: [u64; KEYS.len()],

    boot: u64,
    tick: u64,
    wall: u64,
    store_time: (u64, u64),
    /// The times of notes from which an open may continue.
    moments: Vec<Moment>,
    /// The position in `moments` at which this open begins, and its entries in `log`.
    opening_moment: usize,
    opening_log: usize,

    tokens: BTreeSet<u64>,
    segments_most: u64,
    restarts: u64,
    is_one_hash: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = World {
            sim: Sim::small(seed),
            machine: None,
            keys: [const { None }; KEYS.len()],
            guards: Vec::new(),
            questions: Vec::new(),
            attempts: Vec::new(),
            sights: BTreeMap::new(),
            changed: [None; KEYS.len()],
            lapsed: [None; KEYS.len()],
            tickets: Vec::new(),
            next_question: 0,
            version: 1,
            log: Vec::new(),
            written: 0,
            durable: 0,
            newest: [0; KEYS.len()],
            steps: Vec::new(),
            stage: [Stage::Kept; KEYS.len()],
            older_memory: [0; KEYS.len()],
            boot: 1,
            tick: 60_000,
            wall: 1_767_225_600_000,
            store_time: (1_767_225_600_000, 1_767_225_600_000),
            moments: Vec::new(),
            opening_moment: 0,
            opening_log: 0,
            tokens: BTreeSet::new(),
            segments_most: 0,
            restarts: 0,
            is_one_hash: seed % 8 == 0,
        };
        // Sometimes all keys share one hash, or one bucket.
        match seed % 8 {
            0 => world.sim.mask_hashes(0, 0),
            1 => world.sim.mask_hashes(1 << 63, u64::MAX),
            _ => {}
        }
        let store = world.open();
        world.machine = Some(Machine::new(store, BTreeMap::new()));
        world.note_moment();
        world
    }

    fn open(&self) -> Store {
        // The smallest segments possible, so that a life rolls through several.
        let builder =
            Store::builder().segment_bytes(16 << 10).result_bytes_max(2048).index_memory_max(128);
        self.sim.open_with(builder).unwrap()
    }

    fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().unwrap()
    }

    fn now(&self) -> Now {
        Now { tick: self.tick, store: self.store_time }
    }

    fn note_moment(&mut self) {
        let moment = self.moment();
        if self.moments.last() != Some(&moment) {
            self.moments.push(moment);
        }
    }

    fn moment(&self) -> Moment {
        Moment { boot: self.boot, tick: self.tick, wall: self.wall, store: self.store_time }
    }

    /// An expired key is remembered only by its hash, so not where all have the same one.
    fn asked(&self, ask: &Ask) -> Ask {
        Ask { remember: ask.remember.filter(|_| !self.is_one_hash), ..*ask }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Claim(key, ask) => {
                let ask = &self.asked(ask);
                let id = self.next_question;
                self.next_question += 1;
                let call = Call::Claim { ask: *ask, question: id };
                let (told, token) = self.call(*key, &call);
                self.take_grant(*key, token, ask);
                if let Told::Asked(view) = told {
                    let seen = view.token;
                    self.questions.push(Question { key: *key, id, seen, ask: *ask });
                }
            }
            Op::Mark(key, ask) => {
                let ask = self.asked(ask);
                self.call(*key, &Call::Mark { ask });
            }
            Op::Record(key, ask, failure) => {
                let (ask, value, keep) = (self.asked(ask), b"recorded".to_vec(), None);
                let how = match failure {
                    true => End::Failure { value, keep },
                    false => End::Success { value, keep },
                };
                self.call(*key, &Call::Record { ask, how });
            }
            Op::Batch(items) => self.batch(items),
            Op::Word(at, word) => {
                let Some(at) = pick(*at, self.questions.len()) else { return };
                let Question { key, id, seen, ask } = self.questions.remove(at);
                let word = Call::Word { word: *word, seen, ask, question: id };
                let (_, token) = self.call(key, &word);
                self.take_grant(key, token, &ask);
            }
            Op::DropQuestion(at) => {
                let Some(at) = pick(*at, self.questions.len()) else { return };
                let Question { key, id, .. } = self.questions.remove(at);
                self.call(key, &Call::DropQuestion { question: id });
            }
            Op::End(at, how) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let Guard { key, token, ask, .. } = self.guards.remove(at);
                self.call(key, &Call::End { token, how: how.clone(), ask });
            }
            Op::Park(at) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let Guard { key, token, .. } = self.guards.remove(at);
                self.call(key, &Call::Park { token });
            }
            Op::Progress(at, byte) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let Guard { key, token, ask, .. } = self.guards[at];
                let value = vec![*byte; usize::from(*byte) * 4];
                self.call(key, &Call::Progress { token, value, ask });
            }
            Op::WorkStep(at, name, input, is_announced, len) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let Guard { key, token, ask, .. } = self.guards[at];
                let value = len.map(|len| vec![*name; len.into()]);
                let (name, input, is_announced) = (*name, *input, *is_announced);
                self.call(key, &Call::Step { token, name, input, is_announced, value, ask });
            }
            Op::Detach(at, lease) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let Guard { key, token, .. } = self.guards[at];
                let (told, _) = self.call(key, &Call::Detach { token, lease: *lease });
                if told != Told::IsHeld {
                    self.guards.remove(at);
                }
                if told == Told::Yes {
                    let text = self.machine().tickets[&token].clone();
                    self.tickets.retain(|(_, known, _)| *known != token);
                    self.tickets.push((key, token, text));
                }
            }
            Op::Attach(at) => {
                let Some(at) = pick(*at, self.tickets.len()) else { return };
                let (key, token, text) = self.tickets[self.tickets.len() - 1 - at].clone();
                // This process has one already, which would be dropped here. While that is at work, no other is attached.
                let is_here = self.guards.iter().any(|guard| guard.token == token);
                self.expire(key);
                let is_at_work = matches!(self.shown(key), Some(Shown::Running(view)) if view.token == Some(token));
                if is_here && !is_at_work {
                    return;
                }
                self.machine().tickets.insert(token, text);
                let (told, _) = self.call(key, &Call::Attach { token });
                assert!(!is_here || told == Told::Busy, "{told:?}");
                if told == Told::Yes {
                    // It takes the store's policy, and a drop leaves the claim as it was.
                    let ask = spec::PLAIN;
                    self.guards.push(Guard { key, token, ask, aborts: false, is_attached: true });
                }
            }
            Op::RenewQuestion(at, lease) => {
                let Some(at) = pick(*at, self.questions.len()) else { return };
                let Question { key, id, .. } = self.questions[at];
                self.call(key, &Call::RenewQuestion { question: id, lease: *lease });
            }
            Op::Revoke(at) => {
                let Some(at) = pick(*at, self.attempts.len().min(8)) else { return };
                let (key, token) = self.attempts[self.attempts.len() - 1 - at];
                self.call(key, &Call::Revoke { seen: Some(token) });
            }
            Op::TooLarge(at) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let token = self.guards[at].token;
                let guards = &mut self.machine.as_mut().unwrap().guards;
                let guard = guards.remove(&token).unwrap();
                let error = guard.record(Outcome::success(&vec![0; 4096])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::TooLarge);
                guards.insert(token, error.into_claim().expect("the guard comes back"));
                // The call may have taken effect, whatever was known before.
                self.guards[at].aborts = false;
            }
            Op::Drop(at) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let Guard { key, token, ask, aborts, .. } = self.guards.remove(at);
                self.call(key, &Call::Drop { token, aborts, ask });
            }
            Op::OnDrop(at, aborts) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                self.guards[at].aborts = *aborts && !self.guards[at].is_attached;
                let token = self.guards[at].token;
                let word = if *aborts { OnDrop::Abort } else { OnDrop::Interrupt };
                self.machine().guards[&token].on_drop(word);
            }
            Op::Renew(at, lease) => {
                let Some(at) = pick(*at, self.guards.len()) else { return };
                let Guard { key, token, ask, .. } = self.guards[at];
                self.call(key, &Call::Renew { token, lease: *lease, ask });
            }
            Op::RenewAny(at, lease) => {
                // A handle may outlive its guard, and its key.
                let Some(at) = pick(*at, self.machine().handles.len()) else { return };
                let (token, handle) = self.machine().handles.iter().rev().nth(at).unwrap();
                let (token, key) = (*token, at_of(handle.key()));
                let guard = self.guards.iter().find(|guard| guard.token == token);
                let ask = guard.map_or(spec::PLAIN, |guard| guard.ask);
                self.call(key, &Call::Renew { token, lease: *lease, ask });
            }
            Op::Resolve(at, how) => {
                // The newest are most likely to be the current state.
                let Some(at) = pick(*at, self.attempts.len().min(8)) else { return };
                let (key, token) = self.attempts[self.attempts.len() - 1 - at];
                self.call(key, &Call::Resolve { seen: Some(token), how: how.clone() });
            }
            Op::Forget(key) => drop(self.call(*key, &Call::Forget)),
            Op::ForgetSeen(key) => {
                self.call(*key, &Call::Get);
                self.call(*key, &Call::ForgetSeen);
            }
            Op::ForgetClaimed(key, at) => {
                let Some(at) = pick(*at, self.machine().handles.len()) else { return };
                let token = *self.machine().handles.keys().rev().nth(at).unwrap();
                self.call(*key, &Call::ForgetClaimed { token });
            }
            Op::DropSpace(at) => self.drop_space(*at),
            Op::NewVersion => self.new_version(),
            Op::Get(key) => drop(self.call(*key, &Call::Get)),
            Op::Iter => self.iter(),
            Op::Sync => {
                self.machine().store.sync().unwrap();
                self.all_durable();
            }
            Op::Verify => {
                let damages = self.machine().store.verify().unwrap().damages;
                assert!(damages.is_empty(), "{damages:?}");
            }
            Op::Rebuild => self.machine().store.rebuild_index().unwrap(),
            Op::Compact(budget) => drop(self.machine().store.compact(*budget).unwrap()),
            Op::Step => drop(self.machine().store.step().unwrap()),
            Op::Settle => self.settle(),
            Op::Advance(millis) => self.advance(*millis),
            Op::JumpWall(millis) => {
                self.sim.jump_wall_clock(*millis);
                self.wall = self.wall.saturating_add_signed(*millis);
            }
            Op::Restart(how) => self.restart(*how),
        }
        self.note_moment();
        let segments = self.machine().store.stats().segments;
        self.segments_most = self.segments_most.max(segments);
    }

    /// The key, and the namespace in which it lies.
    fn path(&self, key: usize) -> String {
        match key {
            0..ROOT => KEYS[key].to_owned(),
            VERSIONED => format!("plans@{}/{}", self.version, KEYS[key]),
            _ => {
                let (space, _) = SPACES.iter().rfind(|(_, keys)| keys.contains(&key)).unwrap();
                format!("{space}{}", KEYS[key])
            }
        }
    }

    /// What the store shows of a key.
    fn look(&self, key: usize) -> Option<State> {
        let path = self.path(key);
        let (store, name) = self.machine.as_ref().unwrap().within(&path);
        store.get(name).unwrap()
    }

    fn is_claimed(&self, key: usize) -> bool {
        let mut slot = self.keys[key].clone();
        slot.is_some() && spec::call(&mut slot, self.now(), &Call::Forget, None) == Told::Busy
    }

    /// Drops a namespace, unless a key in it is claimed.
    fn drop_space(&mut self, at: usize) {
        let (space, keys) = SPACES[at];
        keys.iter().for_each(|key| self.expire(*key));
        let is_claimed = keys.iter().any(|key| self.is_claimed(*key));
        let (store, _) = self.machine().within(space);
        match store.forget_all() {
            Err(e) => assert!(is_claimed && e.kind() == ErrorKind::InProgress, "{space}: {e}"),
            Ok(was_there) => {
                let is_there = keys.iter().any(|key| self.keys[*key].is_some());
                assert!(!is_claimed && (was_there || !is_there), "{space}: {was_there}");
                if was_there {
                    self.all_gone(keys);
                }
            }
        }
    }

    /// Has the namespace with versions pass to the next one, unless a key in it is claimed.
    fn new_version(&mut self) {
        self.expire(VERSIONED);
        let (is_claimed, is_there) = (self.is_claimed(VERSIONED), self.keys[VERSIONED].is_some());
        let version = self.version;
        let (old, _) = self.machine().within(&format!("plans@{version}/"));
        let (new, _) = self.machine().within(&format!("plans@{}/", version + 1));
        // A read changes nothing.
        assert!(new.get(KEYS[VERSIONED]).unwrap().is_none());
        match new.mark("version") {
            Err(e) => assert!(is_claimed && e.kind() == ErrorKind::InProgress, "{e}"),
            Ok(mark) => {
                assert!(!is_claimed && mark.is_first(), "{is_claimed}");
                match old.get(KEYS[VERSIONED]) {
                    Err(e) => assert_eq!(e.kind(), ErrorKind::Superseded),
                    // It was made by the newer version.
                    Ok(found) => assert!(!is_there && found.is_none()),
                }
                self.version += 1;
                self.all_gone(&[VERSIONED]);
            }
        }
    }

    /// All keys of a namespace are gone, durably.
    fn all_gone(&mut self, keys: &[usize]) {
        for key in keys {
            if self.keys[*key].take().is_some() {
                self.newest[*key] = self.log.len();
                self.log.push((*key, None));
            }
            self.stage[*key] = Stage::Kept;
            self.older_memory[*key] = 0;
            self.steps.retain(|(of, ..)| of != key);
        }
        self.all_durable();
    }

    /// Makes calls together on the store, and one after the other on the spec: each must be answered as by itself.
    fn batch(&mut self, items: &[Op]) {
        (0..KEYS.len()).for_each(|key| self.expire(key));
        let mut calls: Vec<(usize, Call)> = Vec::new();
        for item in items {
            // The batch is one of the root; what ends in it may lie anywhere.
            let call = match item {
                Op::Claim(key, ask) => {
                    self.next_question += 1;
                    let question = self.next_question - 1;
                    (*key % ROOT, Call::Claim { ask: self.asked(ask), question })
                }
                Op::Mark(key, ask) => (*key % ROOT, Call::Mark { ask: self.asked(ask) }),
                Op::Word(at, word) => {
                    let Some(at) = pick(*at, self.questions.len()) else { continue };
                    let Question { key, id, seen, ask } = self.questions.remove(at);
                    (key, Call::Word { word: *word, seen, ask, question: id })
                }
                Op::End(at, how) => {
                    let Some(at) = pick(*at, self.guards.len()) else { continue };
                    let Guard { key, token, ask, .. } = self.guards.remove(at);
                    (key, Call::End { token, how: how.clone(), ask })
                }
                Op::Forget(key) => (*key % ROOT, Call::Forget),
                other => panic!("{other:?}"),
            };
            calls.push(call);
        }
        let named: Vec<_> =
            calls.iter().map(|(key, call)| (KEYS[*key].to_owned(), call.clone())).collect();
        let said = self.machine().batch(&named).unwrap_or_else(|e| panic!("{calls:?}: {e:?}"));
        for ((key, call), answer) in calls.iter().zip(said) {
            let (told, token) = self.check(*key, call, answer);
            match call {
                Call::Claim { ask, question } => {
                    self.take_grant(*key, token, ask);
                    if let Told::Asked(view) = told {
                        let (id, seen) = (*question, view.token);
                        self.questions.push(Question { key: *key, id, seen, ask: *ask });
                    }
                }
                Call::Word { ask, .. } => self.take_grant(*key, token, ask),
                _ => {}
            }
        }
    }

    /// Makes one call on the store and on the spec.
    fn call(&mut self, key: usize, call: &Call) -> (Told, Option<u64>) {
        self.expire(key);
        let path = self.path(key);
        let answer = self.machine().call(&path, call);
        let answer = answer.unwrap_or_else(|e| panic!("{call:?}: {e:?}"));
        self.check(key, call, answer)
    }

    /// Compares the store's answer with that of the spec.
    fn check(
        &mut self,
        key: usize,
        call: &Call,
        (said, token): (Told, Option<u64>),
    ) -> (Told, Option<u64>) {
        if let Some(token) = token {
            assert!(
                self.tokens.last().is_none_or(|last| *last < token),
                "{token} is not the newest"
            );
            self.tokens.insert(token);
        }
        let now = self.now();
        let before = self.keys[key].clone();
        let told = match self.is_as_seen(key, call, &said) {
            true => spec::call(&mut self.keys[key], now, call, token),
            false => Told::No,
        };
        if spec::records_lapse(&before, now, call) {
            self.lapsed[key] = Some(self.tick);
        }
        if spec::has_changed(&before, &self.keys[key], now, call, &told) {
            self.changed[key] = Some(self.tick);
            self.lapsed[key] = None;
        }
        assert!(
            told.agrees(said.clone()),
            "{call:?} on {before:?}\n spec:  {told:?}\n store: {said:?}"
        );
        self.account(key, before, call, &told);
        self.learn(key, said.clone());
        (said, token)
    }

    /// Whether a resolution meets its key in the state that was shown. Where the clocks leave that open, the store decides.
    fn is_as_seen(&self, key: usize, call: &Call, said: &Told) -> bool {
        let Call::Resolve { seen: Some(token), .. } = call else { return true };
        let may_be = *said != Told::No;
        let Some(sight) = self.sights.get(token) else { return may_be };
        let Some(is) = self.shown(key) else { return false };
        let is_running = matches!(is, Shown::Running(_));
        let recorded = self.lapsed[key].or(self.changed[key]);
        match (sight.recorded, self.changed[key]) {
            _ if discriminant(&is) != sight.is => false,
            _ if is_running => true,
            // Records may have been lost, and are of times that are known in bounds only.
            _ if sight.restarts != self.restarts => may_be,
            (before, now) if before == now || before == recorded => true,
            // To the millisecond.
            (Some(_), _) => false,
            (None, _) => may_be,
        }
    }

    fn shown(&self, key: usize) -> Option<Shown> {
        match spec::call(&mut self.keys[key].clone(), self.now(), &Call::Get, None) {
            Told::State(shown) => shown.map(Shown::without_question),
            told => panic!("{told:?}"),
        }
    }

    /// Notes how an attempt was shown.
    fn saw(&mut self, key: usize, mut said: Told) {
        let Some(Some(token)) = said.view().map(|view| view.token) else { return };
        // Where the clocks leave open whether a lease has passed, it was shown as the store sees it.
        self.pass(key);
        let Some(shown) = self.shown(key) else { return };
        let recorded = self.lapsed[key].or(self.changed[key]);
        let restarts = self.restarts;
        self.sights.insert(token, Sight { is: discriminant(&shown), recorded, restarts });
    }

    /// The token, which the spec can't predict.
    fn learn(&mut self, key: usize, mut said: Told) {
        self.saw(key, said.clone());
        let Some(Some(token)) = said.token().map(|token| *token) else { return };
        if let Some(known) = self.keys[key].as_mut().filter(|known| known.token.is_none()) {
            assert!(!self.tokens.contains(&token), "a token that was issued before");
            known.token = Some(token);
            let at = self.newest[key];
            self.log[at].1.as_mut().unwrap().token = Some(token);
        }
        self.tokens.insert(token);
        let is_attempt = !matches!(said, Told::Recorded(_));
        if is_attempt
            && !self.attempts.contains(&(key, token))
            && self.machine().seen.contains_key(&token)
        {
            self.attempts.push((key, token));
        }
    }

    /// Adds the written records, and the promise of the answer.
    fn account(&mut self, key: usize, before: Option<Key>, call: &Call, told: &Told) {
        // Handles know by themselves that their guard is dropped.
        let is_by_handle = matches!(call, Call::Renew { token, .. }
            if !self.guards.iter().any(|guard| guard.token == *token));
        let is_shown = !is_by_handle
            && !matches!(
                told,
                Told::InProgress(_) | Told::Busy | Told::Invalid
            )
            // A look waits for the record of an interruption, whether somebody decides about it or not.
            && !matches!(
                told,
                Told::State(Some(Shown::Running(view))) if !view.is_being_decided
            );
        if let (Call::Step { .. }, Told::Step { .. }) = (call, told) {
            return self.account_step(key, before, call, told);
        }
        let after = durable_part(&self.keys[key]);
        if after != durable_part(&before) {
            if before.is_some() && is_shown {
                self.holds(self.newest[key], before.as_ref().map(|key| key.level));
            }
            self.newest[key] = self.log.len();
            if let Some((_, latest)) = after.as_ref().and_then(|key| key.memory) {
                self.older_memory[key] = self.older_memory[key].max(latest);
            }
            self.log.push((key, after.clone()));
            self.stage[key] = Stage::Kept;
            // A drop waits for nothing.
            if !matches!(call, Call::Drop { .. }) {
                let level = after.map_or(Durability::Sync, |key| key.level);
                self.holds(self.newest[key], Some(level));
            }
        } else if is_shown
            && before.is_some()
            && !matches!(call, Call::Drop { .. } | Call::DropQuestion { .. })
        {
            self.holds(self.newest[key], before.map(|key| key.level));
        }
    }

    /// A step writes up to two records: one of its claim that announces it, and one of its own that ends it.
    fn account_step(&mut self, key: usize, before: Option<Key>, call: &Call, told: &Told) {
        let (Call::Step { name, input, ask, .. }, Told::Step { value, ran }) = (call, told) else {
            panic!("{call:?}, {told:?}")
        };
        let (before, after) = (durable_part(&before), durable_part(&self.keys[key]));
        let is_of_step =
            |(of, known, _, _): &&(usize, u8, usize, Durability)| (*of, *known) == (key, *name);
        if *ran == Ran::Not {
            if let Some((_, _, at, level)) = self.steps.iter().find(is_of_step).copied() {
                self.holds(at, Some(level));
            }
            return;
        }
        let before = before.unwrap();
        let mut announced = before.clone();
        let opens = after.as_ref().is_some_and(|after| after.level != before.level)
            || matches!(call, Call::Step { is_announced: true, .. })
                && !spec::is_open(&before, *name);
        if opens {
            announced.open_steps.push((*name, *input));
            announced.level = ask.claim_level;
            self.newest[key] = self.log.len();
            self.log.push((key, Some(announced)));
            self.holds(self.newest[key], Some(ask.claim_level));
        }
        if value.is_some() {
            self.steps.retain(|step| !is_of_step(&step));
            self.steps.push((key, *name, self.log.len(), ask.level));
            self.holds(self.log.len(), Some(ask.level));
            self.log.push((key, after));
        }
    }

    fn holds(&mut self, at: usize, level: Option<Durability>) {
        match level {
            Some(Durability::Sync) => self.durable = self.durable.max(at + 1),
            Some(Durability::Flush) => self.written = self.written.max(at + 1),
            _ => {}
        }
        self.written = self.written.max(self.durable);
        self.forget_older_notes();
    }

    /// The note of an open comes before its first record: once that is durable, older notes don't count.
    fn forget_older_notes(&mut self) {
        if self.durable > self.opening_log {
            self.moments.drain(..self.opening_moment);
            self.opening_moment = 0;
        }
    }

    fn all_durable(&mut self) {
        self.durable = self.log.len();
        self.written = self.durable;
        self.forget_older_notes();
    }

    /// The possible stages of a key, by its times and the clocks.
    fn stages(&self, at: usize, key: &Key) -> Vec<Stage> {
        let (now_least, now_most) = self.store_time;
        let Some((earliest, latest)) = key.gone_at else { return vec![Stage::Kept] };
        let is_over = earliest <= now_most;
        let mut stages = Vec::new();
        stages.extend((latest > now_least).then_some(Stage::Kept));
        match key.memory {
            None => stages.extend(is_over.then_some(Stage::Gone)),
            Some((earliest, latest)) => {
                let latest = latest.max(self.older_memory[at]);
                stages.extend((is_over && latest > now_least).then_some(Stage::Remembered));
                stages.extend((is_over && earliest <= now_most).then_some(Stage::Gone));
            }
        }
        stages
    }

    /// Removes the key if its retention, or its memory, has expired. Where the clocks leave that open, the store decides.
    fn expire(&mut self, key: usize) {
        self.pass(key);
        let Some(state) = self.keys[key].clone() else { return };
        let stages = self.stages(key, &state);
        let stage = match stages.as_slice() {
            [stage] => *stage,
            _ => {
                let state = self.look(key);
                let told = Told::State(state.map(|state| self.machine().shown(state)));
                self.saw(key, told.clone());
                Stage::of(&told)
            }
        };
        assert!(stages.contains(&stage), "{} is {stage:?}, and may be {stages:?}", KEYS[key]);
        assert!(stage >= self.stage[key], "a key was {:?} and is back", self.stage[key]);
        self.stage[key] = stage;
        // Nothing is written: the log still has the earlier state.
        match stage {
            Stage::Kept => {}
            Stage::Remembered => self.keys[key] = Some(Key { is: Is::Expired, ..state }),
            Stage::Gone => self.keys[key] = None,
        }
    }

    /// Ends a detached claim's lease, or a delay, that has passed. Where the clocks leave that open, the store decides.
    fn pass(&mut self, key: usize) {
        let Some(mut state) = self.keys[key].clone() else { return };
        let now = self.store_time;
        spec::settle(&mut state, |bounds| {
            has_passed(bounds, now).unwrap_or_else(|| match self.look(key) {
                Some(State::InProgress(_)) => false,
                Some(State::Aborted(attempt)) => attempt.retry_in().is_none(),
                _ => true,
            })
        });
        self.keys[key] = Some(state);
    }

    fn take_grant(&mut self, key: usize, token: Option<u64>, ask: &Ask) {
        if let Some(token) = token {
            let aborts = ask.drop_aborts;
            self.guards.push(Guard { key, token, ask: *ask, aborts, is_attached: false });
        }
    }

    fn iter(&mut self) {
        (0..KEYS.len()).for_each(|key| self.expire(key));
        let mut found = BTreeMap::new();
        for of in [0, 4, 5, VERSIONED] {
            let path = self.path(of);
            let (store, _) = self.machine().within(&path);
            for entry in store.iter() {
                let (key, state) = entry.unwrap();
                if key == onlyonce::Key::from("version") {
                    assert_eq!(of, VERSIONED);
                    continue;
                }
                let shown = self.machine().shown(state);
                assert!(found.insert(at_of(&key), shown).is_none(), "a key twice in one walk");
            }
        }
        for key in 0..KEYS.len() {
            let said = Told::State(found.remove(&key));
            let now = self.now();
            // A memory has no key of its own, so no walk shows it.
            let mut slot = self.keys[key].clone().filter(|key| key.is != Is::Expired);
            if slot.is_none() {
                assert_eq!(said, Told::State(None), "iter, {key}");
                continue;
            }
            let told = spec::call(&mut slot, now, &Call::Get, None);
            assert!(told.agrees(said.clone()), "iter, {key}\n spec:  {told:?}\n store: {said:?}");
            self.account(key, self.keys[key].clone(), &Call::Get, &told);
            self.learn(key, said);
        }
    }

    fn settle(&mut self) {
        self.work();
        self.advance(1000);
        self.work();
        self.all_durable();
    }

    /// Does all background work that is due.
    fn work(&mut self) {
        let store = &self.machine().store;
        let rests = (0..500).any(|_| store.step().unwrap() > Duration::ZERO);
        assert!(rests, "background work without an end");
    }

    fn advance(&mut self, millis: u64) {
        self.sim.advance(Duration::from_millis(millis));
        self.tick += millis;
        self.wall += millis;
        self.store_time.0 += millis;
        self.store_time.1 += millis;
    }

    fn restart(&mut self, how: Restart) {
        self.restarts += 1;
        self.note_moment();
        let mut machine = self.machine.take().unwrap();
        let seen = std::mem::take(&mut machine.seen);
        let mut late = None;
        match how {
            Restart::Close => {
                let left = machine.store.close(Duration::ZERO).unwrap();
                let begun = self.keys.iter().flatten().filter(|key| key.is == Is::Begun);
                let mut running = begun.clone().filter(|key| match key.on_it {
                    OnIt::Owner(until) => until.is_none_or(|until| until > self.tick),
                    _ => false,
                });
                let is_left =
                    |key: &Key| left.iter().any(|left| Some(left.token().get()) == key.token);
                assert!(running.all(is_left), "close names the claims it leaves");
                assert!(left.len() <= begun.count());
                for (_, guard) in std::mem::take(&mut machine.guards) {
                    assert_eq!(guard.complete("late").unwrap_err().kind(), ErrorKind::Closed);
                }
                self.all_durable();
            }
            Restart::DropAll => {
                let Machine { store, mut guards, handles, questions, .. } = machine;
                drop(store);
                if !(guards.is_empty() && handles.is_empty() && questions.is_empty()) {
                    let error = self.sim.open().unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Locked, "a claim keeps the store open");
                }
                drop(questions);
                for guard in std::mem::take(&mut self.guards) {
                    let Guard { key, token, ask, aborts, .. } = guard;
                    drop(guards.remove(&token));
                    let before = self.keys[key].clone();
                    let call = Call::Drop { token, aborts, ask };
                    let now = self.now();
                    let told = spec::call(&mut self.keys[key], now, &call, None);
                    self.account(key, before, &call, &told);
                }
                drop(handles);
                self.all_durable();
            }
            Restart::Kill => {
                self.sim.kill();
                late = Some(machine);
            }
            Restart::PowerLoss | Restart::PowerLossKeeping(_) => {
                match how {
                    Restart::PowerLossKeeping(seed) => self.sim.power_loss_keeping_some(seed),
                    _ => self.sim.power_loss(),
                }
                self.boot += 1;
                self.tick = 1000;
                self.written = self.durable;
                late = Some(machine);
            }
        }
        self.guards.clear();
        self.questions.clear();
        let store = self.open();
        // The handles of the old process know nothing of the crash; they disturb nothing.
        drop(late);
        self.machine = Some(Machine::new(store, seen));
        self.store_time = self.time_after_opening();
        self.find_survivors();
        self.opening_moment = self.moments.len();
        self.opening_log = self.log.len();
        self.moments.push(self.moment());
    }

    /// Store time continues from some note: within a boot by its clock, across boots by the difference of the wall clock,
    /// at least 0 and at most a day.
    fn time_after_opening(&self) -> (u64, u64) {
        let times = self.moments.iter().map(|note| {
            let since = if note.boot == self.boot && note.tick <= self.tick {
                self.tick - note.tick
            } else {
                self.wall.saturating_sub(note.wall).min(DAY)
            };
            (note.store.0 + since, note.store.1 + since)
        });
        times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap()
    }

    /// Finds the longest prefix of the log that explains what the store shows, and continues from there.
    fn find_survivors(&mut self) {
        self.stage = [Stage::Kept; KEYS.len()];
        self.changed = [None; KEYS.len()];
        self.lapsed = [None; KEYS.len()];
        let mut said = Vec::new();
        for key in 0..KEYS.len() {
            let path = self.path(key);
            let (told, _) = self.machine().call(&path, &Call::Get).unwrap();
            said.push(told);
        }
        self.steps.clear();
        let least = self.written;
        let found = (least..=self.log.len()).rev().find_map(|len| self.explains(len, &said));
        let Some((len, keys)) = found else {
            panic!(
                "no prefix of at least {least} explains what is left\n store: {said:?}\n log: {:#?}",
                self.log
            );
        };
        self.log.truncate(len);
        self.newest = [0; KEYS.len()];
        for (at, (key, _)) in self.log.iter().enumerate() {
            self.newest[*key] = at;
        }
        self.keys = keys;
        // An open makes durable what it shows.
        self.durable = len;
        self.written = len;
        for (key, said) in said.into_iter().enumerate() {
            if self.keys[key].is_some() {
                // As far as the clocks show.
                self.stage[key] = Stage::of(&said);
            }
            if Stage::of(&said) == Stage::Kept {
                self.learn(key, said);
            }
        }
    }

    /// The steps that the store has of a key in that life; `None` for a key whose steps no attempt can use any more.
    fn steps_of(&self, key: usize, slot: &Key) -> Option<Steps> {
        // A request names a key of the root.
        if key >= ROOT || !matches!(slot.is, Is::Begun | Is::Held | Is::Aborted) {
            return None;
        }
        let store = &self.machine.as_ref().unwrap().store;
        let life = Token::new(slot.life.expect("a claim that was granted"));
        let look = |name: u8| {
            let ask = backend::Ask::Step { life, name: name.to_string() };
            let request = Request { key: KEYS[key].into(), ask };
            let found = store.send(request).wait().unwrap().found;
            found.map(|view| {
                let print = |print: onlyonce::Fingerprint| {
                    (0..2)
                        .find(|input| onlyonce::Fingerprint::of([*input]) == print)
                        .expect("an input of ours")
                };
                let input = view.state.fingerprint.map(print);
                (name, (input, view.outcome.unwrap().bytes.to_vec()))
            })
        };
        Some((0..STEPS).filter_map(look).collect())
    }

    fn explains(&self, len: usize, said: &[Told]) -> Option<(usize, [Option<Key>; KEYS.len()])> {
        let mut keys = [const { None }; KEYS.len()];
        for (key, state) in &self.log[..len] {
            keys[*key].clone_from(state);
        }
        for (key, said) in said.iter().enumerate() {
            let mut slot = keys[key].clone();
            let stages = slot.as_ref().map(|slot| self.stages(key, slot));
            let stage = Stage::of(said);
            match stages {
                Some(stages) if !stages.contains(&stage) => return None,
                Some(_) if stage != Stage::Kept => continue,
                _ => {}
            }
            let mut fresh = said.clone();
            if let (Some(Some(token)), Some(Key { token: None, .. })) = (fresh.token(), &slot) {
                // A token that was never shown can't be one that was issued to a caller.
                if self.tokens.contains(token) {
                    return None;
                }
            }
            if let Some(slot) = &mut slot {
                spec::settle(slot, |bounds| {
                    has_passed(bounds, self.store_time).unwrap_or(match said {
                        Told::State(Some(Shown::Running(_))) => false,
                        Told::State(Some(Shown::Aborted(view))) => !view.is_delayed,
                        _ => true,
                    })
                });
            }
            let told = spec::call(&mut slot, self.now(), &Call::Get, None);
            if !told.agrees(said.clone()) {
                return None;
            }
            if slot.is_some_and(|slot| self.steps_of(key, &slot).is_some_and(|is| is != slot.steps))
            {
                return None;
            }
        }
        Some((len, keys))
    }
}

/// What records tell of a key.
fn durable_part(key: &Option<Key>) -> Option<Key> {
    let (on_it, left, by_ticket) = (OnIt::Nobody, false, false);
    let (begun_steps, is_suspect) = (BTreeSet::new(), false);
    key.clone().map(|key| Key { on_it, left, by_ticket, begun_steps, is_suspect, ..key })
}

/// Whether a time between these bounds has passed at a time between those; `None` if that can't be told.
fn has_passed((earliest, latest): (u64, u64), (now_least, now_most): (u64, u64)) -> Option<bool> {
    match (latest <= now_least, earliest > now_most) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

fn at_of(key: &onlyonce::Key<'_>) -> usize {
    KEYS.iter().position(|known| onlyonce::Key::from(*known) == *key).unwrap()
}

/// One of `len`, if there is any.
fn pick(at: usize, len: usize) -> Option<usize> {
    at.checked_rem(len)
}

/// The greatest number of any file with this suffix: how many there have been.
fn newest(sim: &Sim, extension: &str) -> u64 {
    let files = sim.files().into_iter().map(|(path, _)| path);
    let numbered = files.filter(|path| path.extension().is_some_and(|end| end == extension));
    let numbers = numbered.filter_map(|path| path.file_stem()?.to_str()?.parse().ok());
    numbers.max().unwrap_or(0)
}

#[test]
fn a_store_behaves_as_its_specification() {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let is_long = std::env::var_os("ONLYONCE_LONG").is_some();
    let cases = asked.unwrap_or(if is_long { 2000 } else { 300 });
    let regressions = FileFailurePersistence::Direct("tests/it/model-regressions.txt");
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(regressions)),
        source_file: Some(file!()),
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let counts = std::cell::Cell::new([0_u64; 5]);
    let lives = (any::<u64>(), vec(op(), 1..80));
    let result = TestRunner::new(config).run(&lives, |(seed, ops)| {
        let mut world = World::new(seed);
        ops.iter().for_each(|op| world.run(op));
        // In the end every life is crashed and checked once more.
        world.run(&Op::Restart(Restart::PowerLoss));
        let of_life = [
            ops.len() as u64,
            world.restarts,
            u64::from(world.segments_most > 3),
            newest(&world.sim, "log"),
            newest(&world.sim, "tab"),
        ];
        counts.set(std::array::from_fn(|n| counts.get()[n] + of_life[n]));
        Ok(())
    });
    let [calls, restarts, rolled, segments, tables] = counts.get();
    println!(
        "model: {cases} lives, {calls} calls, {restarts} reopenings, {segments} segments, {tables} tables; \
         {rolled} lives over 4 segments or more at once"
    );
    if let Err(e) = result {
        panic!("{e}");
    }
}
