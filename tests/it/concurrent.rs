//! Many threads on the same keys: each key is granted once, and all answers fit one order.
//!
//! Each call is recorded with the moments of its start and its end. Keys are independent, so each has a history of its own; the
//! passing of time is in all of them. [`orders`] decides whether a history is linearizable.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use onlyonce::testing::Sim;
use onlyonce::{Claim, Durability, ErrorKind, OnDrop, Operation, Store};

use crate::machine::Machine;
use crate::orders;
use crate::spec::{self, Ask, Call, End, Key, Now, PLAIN, Ran, Shown, Told, Word};

/// One call, its answer, and its times.
type Event = orders::Event<Act>;

#[derive(Clone, Debug)]
enum Act {
    Call {
        call: Call,
        told: Box<Told>,
        token: Option<u64>,
        /// The number of the call that showed the attempt, if it goes by the state that was shown.
        shown_by: Option<u64>,
        /// Its own number, if another call goes by what it showed.
        shows: Option<u64>,
    },
    /// All clocks move on.
    Advance(u64),
}

/// The state of the spec, and what it takes to know whether a key is as it was seen.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct State {
    slot: Option<Key>,
    tick: u64,
    /// How often the key was changed, and when last.
    changed: (u64, u64),
    /// When a call recorded that a lease had passed, since then. That is no change, but a record of its own.
    lapsed: Option<u64>,
    /// How it was shown by calls on whose answers others rely, by their numbers.
    sights: BTreeMap<u64, Sight>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Sight {
    is: Discriminant<Shown>,
    changes: u64,
    /// When the record was made that it was shown by.
    recorded: u64,
}

/// The state of the spec after that call; `None` if it would have answered otherwise.
fn after(state: &State, act: &Act) -> Option<State> {
    let State { mut slot, tick, mut changed, mut lapsed, mut sights } = state.clone();
    let (call, said, token, shown_by, shows) = match act {
        Act::Advance(millis) => return Some(State { tick: tick + millis, ..state.clone() }),
        Act::Call { call, told, token, shown_by, shows } => (call, &**told, token, shown_by, shows),
    };
    if slot.as_ref().and_then(|key| key.gone_at).is_some_and(|(at, _)| at <= tick) {
        slot = None;
    }
    if let Some(key) = &mut slot {
        spec::settle(key, |(at, _)| at <= tick);
    }
    let now = Now { tick, store: (tick, tick) };
    let before = slot.clone();
    let is_as_seen = match shown_by {
        Some(by) => is_as_seen(&slot, now, (changed, lapsed), *sights.get(by)?, said),
        None => true,
    };
    if spec::records_lapse(&slot, now, call) {
        lapsed = Some(tick);
    }
    let told = if is_as_seen { spec::call(&mut slot, now, call, *token) } else { Told::No };
    if spec::has_changed(&before, &slot, now, call, &told) {
        (changed, lapsed) = ((changed.0 + 1, tick), None);
    }
    if !as_one_call(told).agrees(as_one_call(said.clone())) {
        return None;
    }
    if let Some(number) = shows {
        let recorded = lapsed.unwrap_or(changed.1);
        let is = discriminant(&shown(&slot, now)?);
        sights.insert(*number, Sight { is, changes: changed.0, recorded });
    }
    if let (Some(key), Some(shown)) = (&mut slot, said.clone().token()) {
        key.token = key.token.or(*shown);
    }
    Some(State { slot, tick, changed, lapsed, sights })
}

/// Whether a resolution meets the state that was shown. Two records in a millisecond are not told apart, and on a real disk
/// nobody knows which those are.
fn is_as_seen(
    slot: &Option<Key>,
    now: Now,
    (changed, lapsed): ((u64, u64), Option<u64>),
    sight: Sight,
    said: &Told,
) -> bool {
    match shown(slot, now) {
        Some(is) if discriminant(&is) == sight.is => {
            let is_running = matches!(is, Shown::Running(_));
            // The record of a lapse has the time of the one before it, too.
            let is_time = sight.recorded == changed.1 || lapsed == Some(sight.recorded);
            is_running || sight.changes == changed.0 || is_time && *said != Told::No
        }
        _ => false,
    }
}

fn shown(slot: &Option<Key>, now: Now) -> Option<Shown> {
    match spec::call(&mut slot.clone(), now, &Call::Get, None) {
        Told::State(shown) => shown.map(Shown::without_question),
        told => panic!("{told:?}"),
    }
}

/// A step is several calls: whether it began when another attempt was suspect, or came too late to end, depends on their
/// moments. Its result depends on one of them.
fn as_one_call(told: Told) -> Told {
    match told {
        Told::Step { value, ran: Ran::MayBeAgain } => Told::Step { value, ran: Ran::First },
        told => told,
    }
}

/// Returns whether the calls can be put into one order.
fn is_linearisable(events: &[Event]) -> bool {
    orders::order(&mut events.to_vec(), State::default(), after).is_ok()
}

#[test]
fn the_checker_accepts_right_histories_and_rejects_wrong_ones() {
    let event = |begun, ended, call: &Call, told, token| {
        let told = Box::new(told);
        let act = Act::Call { call: call.clone(), told, token, shown_by: None, shows: None };
        Event { act, begun, ended }
    };
    let claim = Call::Claim { ask: PLAIN, question: 0 };
    let granted = |begun, ended, token, attempt| {
        event(begun, ended, &claim, Told::Granted { attempt }, Some(token))
    };
    let view = spec::View {
        attempt: 1,
        token: Some(8),
        hold: false,
        left: None,
        is_detached: false,
        progress: None,
        open_steps: Vec::new(),
        is_being_decided: false,
        is_delayed: false,
    };
    let busy = |begun, ended| event(begun, ended, &claim, Told::InProgress(view.clone()), None);
    let how = End::Success { value: vec![1], keep: None };
    let end = Call::End { token: 8, how, ask: PLAIN };
    let ended = |begun, ended| event(begun, ended, &end, Told::Yes, None);
    let get = |begun, ended, shown| event(begun, ended, &Call::Get, Told::State(shown), None);
    let done = spec::Shown::Success { value: vec![1], attempt: 1, token: Some(8) };
    let cases = [
        ("one after the other", true, vec![granted(1, 2, 8, 1), busy(3, 4), ended(5, 6)]),
        ("the loser ends first", true, vec![granted(1, 4, 8, 1), busy(2, 3)]),
        (
            "seen before the end returns",
            true,
            vec![granted(1, 2, 8, 1), ended(3, 6), get(4, 5, Some(done.clone()))],
        ),
        ("two grants, one after the other", false, vec![granted(1, 2, 8, 1), granted(3, 4, 16, 1)]),
        ("two grants at once", false, vec![granted(1, 4, 8, 1), granted(2, 3, 16, 1)]),
        ("busy before anybody claims", false, vec![busy(1, 2), granted(3, 4, 8, 1)]),
        ("busy after the end", false, vec![granted(1, 2, 8, 1), ended(3, 4), busy(5, 6)]),
        (
            "a result that vanishes",
            false,
            vec![granted(1, 2, 8, 1), ended(3, 8), get(4, 5, Some(done)), get(6, 7, None)],
        ),
    ];
    for (name, expected, history) in cases {
        assert_eq!(is_linearisable(&history), expected, "{name}");
    }
}

/// Steele, Lea and Flood's generator, so that a run can be repeated by its seed.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub(crate) fn index(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| usize::try_from(self.below(len as u64)).unwrap())
    }
}

/// One recording thread with the guards and questions it holds.
struct Player<'a> {
    machine: Machine,
    dice: Dice,
    moments: &'a AtomicU64,
    sim: Option<&'a Sim>,
    keys: &'a [String],
    /// Guards and questions: their keys, names and asks.
    guards: Vec<(usize, u64, Ask, bool)>,
    questions: Vec<(usize, u64, Option<u64>, Ask)>,
    /// Tickets that this thread made: their keys and names.
    tickets: Vec<(usize, u64)>,
    next_question: u64,
    history: Vec<(Option<usize>, Event)>,
    /// Which event of the history showed an attempt last, by token.
    shown: BTreeMap<u64, usize>,
}

impl Player<'_> {
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    fn call(&mut self, key: usize, call: Call) -> (Told, Option<u64>) {
        let begun = self.moment();
        let (told, token) = self.machine.call(&self.keys[key], &call).unwrap();
        let ended = self.moment();
        let shown_by = match &call {
            Call::Resolve { seen, .. } => Some(self.relies_on(seen.unwrap(), begun)),
            _ => None,
        };
        self.note(key, call, (told.clone(), token), shown_by, (begun, ended));
        (told, token)
    }

    fn note(
        &mut self,
        key: usize,
        call: Call,
        (mut told, token): (Told, Option<u64>),
        shown_by: Option<u64>,
        (begun, ended): (u64, u64),
    ) {
        if let Some(Some(token)) = told.view().map(|view| view.token) {
            self.shown.insert(token, self.history.len());
        }
        let act = Act::Call { call, told: Box::new(told), token, shown_by, shows: None };
        self.history.push((Some(key), Event { act, begun, ended }));
    }

    /// Has the call that showed an attempt be remembered under that number.
    fn relies_on(&mut self, token: u64, number: u64) -> u64 {
        let (_, event) = &mut self.history[self.shown[&token]];
        match &mut event.act {
            Act::Call { shows, .. } => *shows.get_or_insert(number),
            act => panic!("{act:?}"),
        }
    }

    fn claim(&mut self, key: usize, ask: Ask) {
        let id = self.next_question;
        self.next_question += 1;
        let (told, token) = self.call(key, Call::Claim { ask, question: id });
        if let Told::Asked(view) = told {
            self.questions.push((key, id, view.token, ask));
        }
        self.take(key, token, ask);
    }

    fn take(&mut self, key: usize, token: Option<u64>, ask: Ask) {
        if let Some(token) = token {
            self.guards.push((key, token, ask, ask.drop_aborts));
        }
    }

    fn ask(&mut self) -> Ask {
        let levels = [Durability::Sync, Durability::Flush, Durability::Lazy];
        let level = |dice: &mut Dice| levels[dice.index(3).unwrap()];
        Ask {
            // On a real disk time passes by itself, and no history records when.
            lease: (self.sim.is_some() && self.dice.below(2) == 0).then_some(100),
            keep: (self.sim.is_some() && self.dice.below(3) == 0).then_some(300),
            remember: None,
            delay: (self.sim.is_some() && self.dice.below(4) == 0).then_some(100),
            claim_level: level(&mut self.dice),
            level: level(&mut self.dice),
            drop_aborts: self.dice.below(3) == 0,
            ..PLAIN
        }
    }

    /// Makes some calls in one batch: each of them lies between its beginning and its end.
    fn play_together(&mut self) {
        let mut calls = Vec::new();
        for _ in 0..2 + self.dice.below(3) {
            let key = self.dice.index(self.keys.len()).unwrap();
            let ask = self.ask();
            calls.push(match (self.dice.below(6), self.dice.index(self.guards.len())) {
                (0, Some(at)) => {
                    let (key, token, ask, _) = self.guards.swap_remove(at);
                    let value = token.to_le_bytes().to_vec();
                    (key, Call::End { token, how: End::Success { value, keep: None }, ask })
                }
                (1, Some(at)) => {
                    let (key, token, ask, _) = self.guards.swap_remove(at);
                    (key, Call::End { token, how: End::Nothing, ask })
                }
                (2, _) => (key, Call::Forget),
                _ => {
                    self.next_question += 1;
                    (key, Call::Claim { ask, question: self.next_question - 1 })
                }
            });
        }
        let named = calls.iter().map(|(key, call)| (self.keys[*key].clone(), call.clone()));
        let named: Vec<_> = named.collect();
        let begun = self.moment();
        let said = self.machine.batch(&named).unwrap();
        let ended = self.moment();
        for ((key, call), (told, token)) in calls.into_iter().zip(said) {
            if let Call::Claim { ask, question } = &call {
                if let Told::Asked(view) = &told {
                    self.questions.push((key, *question, view.token, *ask));
                }
                self.take(key, token, *ask);
            }
            self.note(key, call, (told, token), None, (begun, ended));
        }
    }

    /// Makes any call, on a key or with a guard or question it holds.
    fn play(&mut self) {
        let key = self.dice.index(self.keys.len()).unwrap();
        match self.dice.below(100) {
            0..36 => {
                let ask = self.ask();
                self.claim(key, ask);
            }
            36..40 => self.play_together(),
            40..56 => {
                let Some(at) = self.dice.index(self.guards.len()) else { return };
                let (key, token, ask, aborts) = self.guards.swap_remove(at);
                let value = token.to_le_bytes().to_vec();
                let call = match self.dice.below(5) {
                    4 => Call::Park { token },
                    0 => Call::Drop { token, aborts, ask },
                    1 => Call::End { token, how: End::Success { value, keep: None }, ask },
                    2 => Call::End { token, how: End::Failure { value, keep: None }, ask },
                    _ => Call::End { token, how: End::Nothing, ask },
                };
                self.call(key, call);
            }
            56..60 => self.detach_or_attach(),
            60..70 => {
                let Some(at) = self.dice.index(self.questions.len()) else { return };
                let (key, question, seen, ask) = self.questions.swap_remove(at);
                let words = [Word::TakeOver, Word::TakeOver, Word::NotApplied, Word::Hold];
                let call = match self.dice.below(6) {
                    5 if self.sim.is_some() => {
                        self.questions.push((key, question, seen, ask));
                        Call::RenewQuestion { question, lease: 100 }
                    }
                    4 | 5 => Call::DropQuestion { question },
                    word => {
                        let word = words[usize::try_from(word).unwrap()];
                        Call::Word { word, seen, ask, question }
                    }
                };
                let (_, token) = self.call(key, call);
                self.take(key, token, ask);
            }
            70..74 => {
                let guards = if self.sim.is_some() { self.guards.len() } else { 0 };
                let Some(at) = self.dice.index(guards) else { return };
                let (key, token, ask, _) = self.guards[at];
                self.call(key, Call::Renew { token, lease: 100, ask });
            }
            74..78 => {
                let Some(at) = self.dice.index(self.guards.len()) else { return };
                let (key, token, ask, _) = self.guards[at];
                let value = self.dice.below(1000).to_string().into_bytes();
                let call = match self.dice.below(2) {
                    0 => Call::Progress { token, value, ask },
                    // A beginning that is announced is a call of its own, which the end may not follow.
                    _ => {
                        let (name, value) = (self.dice.index(2).unwrap() as u8, Some(value));
                        Call::Step { token, name, input: None, is_announced: false, value, ask }
                    }
                };
                self.call(key, call);
            }
            78..83 => {
                let Some(at) = self.dice.index(self.machine.seen.len()) else { return };
                let (token, attempt) = self.machine.seen.iter().nth(at).unwrap();
                let is_it = |key: &String| onlyonce::Key::from(key) == *attempt.key();
                let (key, seen) = (self.keys.iter().position(is_it).unwrap(), Some(*token));
                let call = match self.dice.below(2) {
                    0 => Call::Resolve { seen, how: End::Nothing },
                    _ => Call::Revoke { seen },
                };
                self.call(key, call);
            }
            83..87 => drop(self.call(key, Call::Forget)),
            87..89 => drop(self.call(key, Call::Mark { ask: PLAIN })),
            89 => {
                let how = End::Failure { value: vec![89], keep: None };
                self.call(key, Call::Record { ask: PLAIN, how });
            }
            90..97 => drop(self.call(key, Call::Get)),
            // It is in the history of every key: rare where there are many.
            _ if self.dice.below(self.keys.len().div_ceil(10) as u64) > 0 => {}
            _ => {
                let Some(sim) = self.sim else { return };
                let millis = 60;
                let begun = self.moment();
                sim.advance(Duration::from_millis(millis));
                let ended = self.moment();
                self.history.push((None, Event { act: Act::Advance(millis), begun, ended }));
            }
        }
    }
}

impl Player<'_> {
    fn detach_or_attach(&mut self) {
        // On a real disk the lease is to outlast the run.
        let lease = if self.sim.is_some() { 200 } else { 3_600_000 };
        if self.dice.below(2) == 0 {
            let Some(at) = self.dice.index(self.guards.len()) else { return };
            let (key, token, ..) = self.guards[at];
            let (told, _) = self.call(key, Call::Detach { token, lease });
            if told != Told::IsHeld {
                self.guards.swap_remove(at);
            }
            if told == Told::Yes {
                self.tickets.push((key, token));
            }
        } else {
            let Some(at) = self.dice.index(self.tickets.len()) else { return };
            let (key, token) = self.tickets[at];
            // This thread's own guard of it is known; another one would be dropped here.
            if self.guards.iter().any(|(_, known, ..)| *known == token) {
                return;
            }
            let (told, _) = self.call(key, Call::Attach { token });
            if told == Told::Yes {
                self.guards.push((key, token, PLAIN, false));
            }
        }
    }
}

/// Runs threads, and checks their answers. Returns the number of calls.
fn play(store: &Store, sim: Option<&Sim>, threads: u64, keys: u64, calls: u64, seed: u64) -> usize {
    let keys: Vec<String> = (0..keys).map(|key| format!("key-{key}")).collect();
    let moments = AtomicU64::new(0);
    let barrier = Barrier::new(usize::try_from(threads).unwrap());
    let mut histories: Vec<Vec<Event>> = vec![Vec::new(); keys.len()];
    let mut count = 0;
    std::thread::scope(|scope| {
        let players: Vec<_> = (0..threads)
            .map(|thread| {
                let (keys, moments, barrier) = (&keys[..], &moments, &barrier);
                scope.spawn(move || {
                    let mut player = Player {
                        machine: Machine::new(store.clone(), BTreeMap::new()),
                        dice: Dice(seed << 16 | thread),
                        moments,
                        sim,
                        keys,
                        guards: Vec::new(),
                        questions: Vec::new(),
                        tickets: Vec::new(),
                        next_question: thread << 32,
                        history: Vec::new(),
                        shown: BTreeMap::new(),
                    };
                    barrier.wait();
                    (0..calls).for_each(|_| player.play());
                    barrier.wait();
                    // The rest is dropped without a record, after every history has ended.
                    for guard in player.machine.guards.values() {
                        guard.on_drop(OnDrop::Interrupt);
                    }
                    player.history
                })
            })
            .collect();
        for player in players {
            for (key, event) in player.join().unwrap() {
                count += 1;
                match key {
                    Some(key) => histories[key].push(event),
                    None => histories.iter_mut().for_each(|all| all.push(event.clone())),
                }
            }
        }
    });
    for (key, history) in keys.iter().zip(&mut histories) {
        history.sort_by_key(|event| event.begun);
        assert!(is_linearisable(history), "seed {seed}, {key}: no order explains\n{history:#?}");
    }
    count
}

/// 64 threads and 1,000 keys, each claimed by all; the winner completes.
fn race(store: &Store) {
    const KEYS: usize = 1000;
    let keys: Vec<String> = (0..KEYS).map(|key| format!("race-{key}")).collect();
    let grants: Vec<AtomicU32> = (0..KEYS).map(|_| AtomicU32::new(0)).collect();
    let barrier = Barrier::new(64);
    std::thread::scope(|scope| {
        for thread in 0..64 {
            let (keys, grants, barrier) = (&keys, &grants, &barrier);
            scope.spawn(move || {
                let mut dice = Dice(thread);
                // Half of them in step, half from random keys.
                let begin = if thread % 2 == 0 { 0 } else { dice.index(KEYS).unwrap() };
                barrier.wait();
                for at in (0..KEYS).map(|step| (begin + step) % KEYS) {
                    match store.claim(&keys[at]).unwrap() {
                        Claim::Acquired(claim) => {
                            grants[at].fetch_add(1, Ordering::SeqCst);
                            claim.complete(&thread.to_le_bytes()).unwrap();
                        }
                        Claim::InProgress(attempt) => assert_eq!(attempt.number(), 1),
                        Claim::Completed(done) => assert_eq!(done.attempt(), 1),
                        other => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert!(grants.iter().all(|grants| grants.load(Ordering::SeqCst) == 1));
}

fn rounds(few: u64, many: u64) -> u64 {
    if std::env::var_os("ONLYONCE_LONG").is_some() { many } else { few }
}

#[test]
fn one_of_64_threads_is_granted_each_key_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_create(dir.path().join("keys")).unwrap();
    race(&store);
    assert_eq!(store.stats().in_flight, 0);
    println!("race: 64,000 claims of 1,000 keys, {} syncs", store.stats().syncs);
}

#[test]
fn one_of_64_threads_is_granted_each_key_on_the_simulated_disk() {
    let sim = Sim::small(1);
    race(&sim.open().unwrap());
    sim.power_loss();
    let store = sim.open().unwrap();
    let is_done = |key| matches!(store.claim(key).unwrap(), Claim::Completed(_));
    assert!((0..1000).all(|key| is_done(format!("race-{key}"))));
}

#[test]
fn histories_of_64_threads_on_1000_keys_are_linearizable() {
    let sim = Sim::small(2);
    let store = sim.open().unwrap();
    let calls = play(&store, Some(&sim), 64, 1000, rounds(300, 1500), 1);
    drop(store);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_create(dir.path().join("keys")).unwrap();
    let real = play(&store, None, 64, 1000, rounds(100, 500), 2);
    println!("histories: {calls} calls on the simulated disk, {real} on a real one");
}

#[test]
fn histories_of_8_threads_on_2_keys_are_linearizable() {
    let rounds = rounds(100, 2000);
    let mut calls = 0;
    for seed in 0..rounds {
        let sim = Sim::small(seed);
        let store = sim.open().unwrap();
        calls += play(&store, Some(&sim), 8, 2, 40, seed);
    }
    println!("histories: {rounds} of 8 threads on 2 keys, {calls} calls");
}

/// Whether a lease has passed and how much of it is left are decided by one reading of the time. There were two, and when
/// time passed in between, claimants saw a claim in progress with no time left.
#[test]
fn a_claim_in_progress_has_some_of_its_lease_left() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    for lease in 10..14 {
        let op = Operation::new(lease).lease(Duration::from_millis(lease));
        let owner = store.claim(&op).unwrap();
        sim.run_on(1);
        while let Claim::InProgress(attempt) = store.claim(&op).unwrap() {
            assert_ne!(attempt.lease_left(), Some(Duration::ZERO), "of {lease} ms");
        }
        sim.run_on(0);
        drop(owner);
    }
}

/// The leader of a sync gathers others for half a sync's time. On a clock driven by hand that time never passed: when the
/// clock was moved during a sync, all threads of a test hung.
#[test]
fn waiters_do_not_wait_for_a_clock_that_stands_still() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let claim = |key: &'static str| {
        let (store, (done, is_done)) = (store.clone(), std::sync::mpsc::channel());
        std::thread::spawn(move || done.send(store.mark(key).unwrap().is_first()));
        is_done
    };
    assert!(store.mark("first").unwrap().is_first());
    let gate = sim.hold_sync();
    let leader = claim("leader");
    assert!(gate.wait_arrived(Duration::from_secs(10)));
    let follower = claim("follower");
    // Its record has its place, so it waits, or is about to.
    while store.stats().records < 3 {
        std::thread::yield_now();
    }
    sim.advance(Duration::from_secs(1));
    gate.open();
    for done in [leader, follower] {
        assert_eq!(done.recv_timeout(Duration::from_secs(10)), Ok(true), "it hangs");
    }
}

#[test]
fn a_grant_made_while_the_store_closed_is_known_to_the_next_open() {
    for round in 0..rounds(50, 500) {
        let sim = Sim::small(round);
        let store = sim.open().unwrap();
        let barrier = Barrier::new(5);
        let granted: Vec<(u64, u64)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4_u64)
                .map(|thread| {
                    let (store, barrier) = (&store, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let mut granted = Vec::new();
                        for n in 0.. {
                            match store.claim((thread, n)) {
                                Ok(claim) => {
                                    granted.push((thread, n));
                                    std::mem::forget(claim);
                                }
                                Err(e) => {
                                    assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
                                    break;
                                }
                            }
                        }
                        granted
                    })
                })
                .collect();
            barrier.wait();
            (0..round % 7).for_each(|_| std::thread::yield_now());
            store.close(Duration::ZERO).unwrap();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        sim.power_loss();
        let store = sim.open().unwrap();
        for key in granted {
            let state = store.get(key).unwrap();
            assert!(matches!(state, Some(onlyonce::State::Interrupted(_))), "{key:?}: {state:?}");
        }
    }
}

/// The smallest tables and segments there are, and the two threads that keep them.
fn open_busy(sim: &Sim) -> Store {
    let builder =
        || Store::builder().segment_bytes(16 << 10).result_bytes_max(256).index_memory_max(1024);
    drop(sim.open_with(builder()).unwrap());
    sim.open_existing(builder(), true).unwrap()
}

/// Ends the other threads, too, when one of them panics.
struct EndsAll<'a>(&'a AtomicU32);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        self.0.store(1, Ordering::SeqCst);
    }
}

#[test]
fn histories_during_checkpoints_merges_and_compaction_are_linearizable() {
    let (rounds, mut calls, mut reclaimed) = (rounds(6, 120), 0, 0);
    for seed in 0..rounds {
        let sim = Sim::small(seed);
        if seed % 3 == 2 {
            sim.mask_hashes(0, 0);
        }
        let store = open_busy(&sim);
        // Keys that no thread touches: they are there, whatever moves around them.
        let long = |n: u64| format!("still-{n:0>1500}");
        (0..20).for_each(|n| assert!(store.mark(long(n)).unwrap().is_first()));
        let is_over = AtomicU32::new(0);
        std::thread::scope(|scope| {
            // Garbage, so that segments come and go.
            let churn = scope.spawn(|| {
                let _ends = EndsAll(&is_over);
                let mut n = 0_u64;
                while is_over.load(Ordering::SeqCst) == 0 {
                    let key = format!("churn-{n:0>2500}");
                    let op = onlyonce::Operation::new(&key).durability(Durability::Lazy);
                    assert!(store.mark(op).unwrap().is_first());
                    assert!(store.forget(&key).unwrap());
                    n += 1;
                    // On a clock that stands still no wait would end.
                    sim.advance(Duration::from_millis(20));
                }
            });
            let compacts = scope.spawn(|| {
                let _ends = EndsAll(&is_over);
                let mut reclaimed = 0;
                while is_over.load(Ordering::SeqCst) == 0 {
                    reclaimed += store.compact(20_000).unwrap().bytes_reclaimed();
                }
                reclaimed
            });
            let looks = scope.spawn(|| {
                let _ends = EndsAll(&is_over);
                let mut walks = 0_u64;
                // At least once, however late this thread starts.
                while walks == 0 || is_over.load(Ordering::SeqCst) == 0 {
                    let mut still = [0; 20];
                    for entry in store.iter() {
                        let (key, _) = entry.unwrap();
                        let name = key.to_string();
                        if let Some(n) = name.strip_prefix("still-") {
                            still[n.parse::<usize>().unwrap()] += 1;
                        }
                    }
                    assert!(
                        still.iter().all(|&met| met == 1),
                        "seed {seed}: a walk met them otherwise than once: {still:?}"
                    );
                    for n in 0..20 {
                        assert!(store.get(long(n)).unwrap().is_some(), "{n} is missing");
                        assert!(!store.mark(long(n)).unwrap().is_first(), "{n} is new");
                    }
                    let damages = store.verify().unwrap().damages;
                    assert!(damages.is_empty(), "seed {seed}: {damages:?}");
                    walks += 1;
                }
            });
            let _ends = EndsAll(&is_over);
            calls += play(&store, None, 8, 12, 150, seed);
            is_over.store(1, Ordering::SeqCst);
            churn.join().unwrap();
            reclaimed += compacts.join().unwrap();
            looks.join().unwrap();
        });
        assert!(store.health().is_writable());
        sim.power_loss();
        drop(store);
        let store = open_busy(&sim);
        assert!((0..20).all(|n| store.get(long(n)).unwrap().is_some()));
        assert!(store.verify().unwrap().is_whole());
    }
    println!("busy histories: {rounds} rounds, {calls} calls, {reclaimed} bytes reclaimed");
    assert!(reclaimed > 0);
}
