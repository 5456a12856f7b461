//! Many threads of several processes on the same keys, while the process that hosts the store is killed every 200 ms.
//!
//! Each process writes down its calls (`history`). At the end all of them are compared with what must hold (`checks`).
//! `ONLYONCE_SECONDS`, `ONLYONCE_PROCESSES`, `ONLYONCE_THREADS` (of each process) and `ONLYONCE_KEYS` set how long and how large.

mod checks;
mod history;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onlyonce::{
    Attempt, Claim, ClaimGuard, Error, ErrorKind, Interrupted, Mark, Recorded, State, Store,
};

use self::checks::Death;
use self::history::{Ask, Call, Sight, Told, Writer, moment};
use crate::concurrent::Dice;
use crate::processes::{Peer, open};

const KILL_EVERY: Duration = Duration::from_millis(200);

/// How often, in kills of a host, a guest is killed, too. A guest that has seen three hosts die soon doesn't host any more, so without
/// that the newest process would always host.
const KILLS_A_GUEST: u64 = 5;

struct Settings {
    seconds: u64,
    processes: usize,
    threads: u16,
    keys: u32,
}

impl Settings {
    fn new() -> Self {
        let set = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
        let seconds = if std::env::var_os("ONLYONCE_LONG").is_some() { 8 } else { 2 };
        Settings {
            seconds: set("ONLYONCE_SECONDS").unwrap_or(seconds),
            processes: set("ONLYONCE_PROCESSES").map_or(4, |n| usize::try_from(n).unwrap()),
            threads: set("ONLYONCE_THREADS").map_or(16, |n| u16::try_from(n).unwrap()),
            keys: set("ONLYONCE_KEYS").map_or(1000, |n| u32::try_from(n).unwrap()),
        }
    }
}

/// Plays until it is killed, or told to stop. Then it keeps the store open until it is told to leave.
pub(crate) fn plays(dir: &Path, process: &str) {
    let store = open(&dir.join("keys"));
    println!("peer: open");
    // The other threads would go on.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}");
        std::process::exit(101);
    }));
    let process: u32 = process.parse().unwrap();
    let (settings, writer) = (Settings::new(), Writer::create(dir, process));
    let is_over = AtomicBool::new(false);
    let mut orders = std::io::stdin().lock().lines();
    std::thread::scope(|scope| {
        for thread in 0..settings.threads {
            let (store, writer, is_over) = (&store, &writer, &is_over);
            let dice = Dice(u64::from(process) << 16 | u64::from(thread));
            let mut player = Player { store, writer, thread, dice, keys: settings.keys };
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    player.play();
                }
            });
        }
        assert_eq!(orders.next().unwrap().unwrap(), "stop");
        is_over.store(true, Ordering::Relaxed);
    });
    println!("peer: told stopped");
    assert_eq!(orders.next().unwrap().unwrap(), "leave");
    store.close(Duration::ZERO).unwrap();
    println!("peer: told left");
}

struct Player<'a> {
    store: &'a Store,
    writer: &'a Writer,
    thread: u16,
    dice: Dice,
    keys: u32,
}

enum Got {
    Claim(ClaimGuard),
    Question(Interrupted),
    Outcome,
    Nothing,
}

impl Player<'_> {
    fn play(&mut self) {
        // A few keys are much in demand.
        let among = if self.dice.below(4) == 0 { self.keys.div_ceil(50) } else { self.keys };
        let key = u32::try_from(self.dice.below(u64::from(among))).unwrap();
        match self.dice.below(10) {
            0 => self.call(key, Ask::Get, || (get(self.store, key), ())),
            1 => self.call(key, Ask::Mark, || (mark(self.store, key), ())),
            2 => self.forget(key),
            _ => self.claim(key),
        }
    }

    fn call<T>(&self, key: u32, ask: Ask, call: impl FnOnce() -> (Told, T)) -> T {
        self.writer.call(self.thread, key, ask, call)
    }

    fn forget(&self, key: u32) {
        self.call(key, Ask::Forget, || {
            let told = match self.store.forget(name(key)) {
                Ok(true) => Told::Yes,
                Ok(false) => Told::No,
                Err(e) => refused(&e),
            };
            (told, ())
        });
    }

    fn claim(&mut self, key: u32) {
        let got = self.call(key, Ask::Claim, || match self.store.claim(name(key)) {
            Ok(Claim::Acquired(claim)) => (granted(&claim), Got::Claim(claim)),
            Ok(Claim::Interrupted(lost)) => {
                (Told::Asked(seen(lost.attempt())), Got::Question(lost))
            }
            Ok(Claim::InProgress(attempt)) => (in_progress(&attempt), Got::Nothing),
            Ok(Claim::Completed(done)) => (completed(&done), Got::Outcome),
            Ok(other) => panic!("{other}"),
            Err(e) => (refused(&e), Got::Nothing),
        });
        match got {
            Got::Claim(claim) => self.own(key, claim),
            Got::Question(lost) => self.answer(key, lost),
            Got::Outcome if self.dice.below(2) == 0 => self.forget(key),
            Got::Outcome | Got::Nothing => {}
        }
    }

    fn answer(&mut self, key: u32, lost: Interrupted) {
        let token = lost.attempt().token().get();
        let said = |said: onlyonce::Result<ClaimGuard>| match said {
            Ok(claim) => (granted(&claim), Some(claim)),
            Err(e) => (refused(&e), None),
        };
        let claim = match self.dice.below(4) {
            0 => return drop(lost),
            1 => self.call(key, Ask::NotApplied(token), || said(lost.not_applied())),
            _ => self.call(key, Ask::TakeOver(token), || said(lost.take_over())),
        };
        if let Some(claim) = claim {
            self.own(key, claim);
        }
    }

    /// Works for a moment, now and then, and ends the claim.
    fn own(&mut self, key: u32, claim: ClaimGuard) {
        if self.dice.below(8) == 0 {
            std::thread::sleep(Duration::from_micros(self.dice.below(3000)));
        }
        let token = claim.token().get();
        let ended = |ended: onlyonce::Result<()>| match ended {
            Ok(()) => (Told::Yes, ()),
            Err(e) => (refused(&e), ()),
        };
        match self.dice.below(8) {
            0 => self.call(key, Ask::Drop(token), || {
                drop(claim);
                (Told::Yes, ())
            }),
            1 => self.call(key, Ask::Abort(token), || ended(claim.abort("again"))),
            _ => self.call(key, Ask::Complete(token), || ended(claim.complete(&token.to_string()))),
        }
    }
}

fn name(key: u32) -> (&'static str, u64) {
    ("crowd", u64::from(key))
}

fn mark(store: &Store, key: u32) -> Told {
    match store.mark(name(key)) {
        Ok(Mark::First) => Told::First,
        Ok(Mark::Again) => Told::Again,
        Ok(Mark::InProgress(attempt)) => in_progress(&attempt),
        Ok(Mark::Interrupted(attempt)) => Told::Interrupted(seen(&attempt)),
        Ok(other) => panic!("{other}"),
        Err(e) => refused(&e),
    }
}

fn get(store: &Store, key: u32) -> Told {
    match store.get(name(key)) {
        Ok(None) => Told::Absent,
        Ok(Some(State::InProgress(attempt))) => in_progress(&attempt),
        Ok(Some(State::Interrupted(attempt))) => Told::Interrupted(seen(&attempt)),
        Ok(Some(State::Aborted(attempt))) => Told::Aborted(seen(&attempt)),
        Ok(Some(State::Completed(done))) => completed(&done),
        Ok(Some(other)) => panic!("{other}"),
        Err(e) => refused(&e),
    }
}

fn granted(claim: &ClaimGuard) -> Told {
    Told::Granted(Sight { token: claim.token().get(), attempt: claim.attempt() })
}

fn seen(attempt: &Attempt) -> Sight {
    Sight { token: attempt.token().get(), attempt: attempt.number() }
}

fn in_progress(attempt: &Attempt) -> Told {
    match attempt.is_being_decided() {
        true => Told::BeingDecided(seen(attempt)),
        false => Told::InProgress(seen(attempt)),
    }
}

fn completed(done: &Recorded) -> Told {
    let token = done.token();
    // That of a mark is empty.
    let result = done.result();
    assert!(result.is_empty() || result.decode::<String>().unwrap() == token.to_string());
    Told::Completed(Sight { token: token.get(), attempt: done.attempt() })
}

/// What a call may answer while hosts are killed; nothing else.
fn refused(e: &Error) -> Told {
    match e.kind() {
        ErrorKind::Indeterminate => Told::Indeterminate,
        ErrorKind::ClaimLost => Told::Lost,
        ErrorKind::InProgress => Told::Busy,
        _ => panic!("{e}"),
    }
}

/// The processes that play, by their numbers, and what became of the others.
struct Crowd<'a> {
    dir: &'a Path,
    peers: Vec<(u32, Peer)>,
    started: u32,
    deaths: Vec<Death>,
    /// Guests that were killed since a host was killed last: that one may have calls of theirs. Indices of `deaths`.
    outlived: Vec<usize>,
}

impl Crowd<'_> {
    fn start(&mut self) {
        self.started += 1;
        let peer = Peer::start_unready(&format!("plays:{}", self.started), self.dir);
        self.peers.push((self.started, peer));
    }

    /// Waits for a process that hosts the store, and returns its place.
    fn host(&mut self) -> usize {
        for _ in 0..60_000 {
            for (number, peer) in &mut self.peers {
                let ended = peer.ended();
                assert!(ended.is_none(), "process {number} has ended: {ended:?}");
            }
            let holder = lock_holder(&self.dir.join("keys"));
            if let Some(at) = self.peers.iter().position(|(_, peer)| Some(peer.pid()) == holder) {
                return at;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("nobody hosts the store for a minute");
    }

    /// Kills that process, and starts another.
    fn kill(&mut self, at: usize, hosted: bool) {
        let (process, peer) = self.peers.remove(at);
        let killed = moment();
        peer.kill();
        let over = moment();
        self.deaths.push(Death { process, killed, over, hosted });
        match hosted {
            true => {
                for at in self.outlived.drain(..) {
                    self.deaths[at].over = over;
                }
            }
            false => self.outlived.push(self.deaths.len() - 1),
        }
        self.start();
    }

    fn hosts_killed(&self) -> u64 {
        self.deaths.iter().filter(|death| death.hosted).count() as u64
    }
}

/// Which process has locked the directory. A reader locks it shared.
fn lock_holder(dir: &Path) -> Option<u32> {
    let place = format!(":{} ", std::fs::metadata(dir).ok()?.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let line = locks.lines().find(|line| line.contains("FLOCK") && line.contains(&place))?;
    let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "WRITE");
    words.nth(1)?.parse().ok()
}

/// Each key is granted once at a time, no acknowledged completion is lost, each token is granted once, no owner that lives loses its
/// claim, and the calls on each key fit one order.
#[test]
fn each_key_has_one_history_while_hosts_are_killed() {
    let settings = Settings::new();
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let mut crowd =
        Crowd { dir, peers: Vec::new(), started: 0, deaths: Vec::new(), outlived: Vec::new() };
    (0..settings.processes).for_each(|_| crowd.start());
    let until = moment() + settings.seconds * 1_000_000_000;
    let mut dice = Dice(1);
    while moment() < until {
        std::thread::sleep(KILL_EVERY / 2);
        if settings.processes > 1 && crowd.hosts_killed() % KILLS_A_GUEST == KILLS_A_GUEST - 1 {
            let others = crowd.peers.len() - 1;
            let after = 1 + dice.index(others).unwrap();
            let guest = (crowd.host() + after) % crowd.peers.len();
            crowd.kill(guest, false);
        }
        std::thread::sleep(KILL_EVERY / 2);
        let host = crowd.host();
        crowd.kill(host, true);
    }
    for (_, peer) in &mut crowd.peers {
        assert_eq!(peer.ask("stop"), "stopped");
    }
    // Every claim was ended, dropped, given back, or its owner was killed.
    let store = open(&dir.join("keys"));
    let waits = (0..60_000).take_while(|_| {
        std::thread::sleep(Duration::from_millis(1));
        store.stats().in_flight > 0
    });
    let waited = waits.count();
    let stuck: Vec<_> = if waited < 60_000 { Vec::new() } else { store.iter().collect() };
    assert!(stuck.is_empty(), "claims of nobody: {stuck:#?}");
    for (_, peer) in &mut crowd.peers {
        assert_eq!(peer.ask("leave"), "left");
    }
    crowd.peers.clear();
    let mut end = moment();
    crowd.outlived.drain(..).for_each(|at| crowd.deaths[at].over = end);

    let (started, deaths) = (crowd.started, &crowd.deaths[..]);
    let mut calls: Vec<Call> =
        (1..=started).flat_map(|process| history::read(dir, process)).collect();
    for key in 0..settings.keys {
        let begun = moment();
        let told = get(&store, key);
        end = moment();
        let ask = Ask::Get;
        calls.push(Call { process: 0, thread: 0, key, ask, told, begun, ended: end });
    }
    let (wrong, found) = checks::check(&calls, deaths, end + 1);
    report(&settings, started, deaths, &calls, &found);
    if !wrong.is_empty() {
        drop(store);
        let kept = temporary.keep();
        let shown = wrong.get(..5).unwrap_or(&wrong).join("\n");
        panic!("{} violations, in {}:\n{shown}", wrong.len(), kept.display());
    }
}

fn report(
    settings: &Settings,
    started: u32,
    deaths: &[Death],
    calls: &[Call],
    found: &checks::Found,
) {
    let Settings { seconds, processes, threads, keys } = settings;
    let hosts = deaths.iter().filter(|death| death.hosted).count();
    println!("crowd: {seconds} s, {processes} processes of {threads} threads, {keys} keys");
    println!(
        "crowd: {started} processes started, {hosts} hosts and {} guests killed",
        deaths.len() - hosts
    );
    let mut counts: BTreeMap<_, BTreeMap<_, u64>> = BTreeMap::new();
    let mut answers: BTreeMap<_, u64> = BTreeMap::new();
    for call in calls {
        *counts.entry(call.ask.name()).or_default().entry(call.told.name()).or_default() += 1;
        *answers.entry(call.told.name()).or_default() += 1;
    }
    println!("crowd: {} calls; by answer: {answers:?}", calls.len());
    for (ask, told) in counts {
        println!("crowd: {ask}: {} calls, {told:?}", told.values().sum::<u64>());
    }
    let unknown = answers.get(Told::Indeterminate.name()).copied().unwrap_or(0);
    println!("crowd: {unknown} calls were answered Indeterminate");
    println!("crowd: {found:?}");
    let mut gaps = without_host(calls, deaths);
    gaps.sort_unstable();
    if let [.., longest] = gaps[..] {
        let millis = |nanos: u64| nanos as f64 / 1e6;
        let median = millis(gaps[gaps.len() / 2]);
        println!(
            "crowd: without a host for {median:.1} ms (median), {:.1} at most",
            millis(longest)
        );
    }
}

/// Of each host that was killed, how long it took until a call was answered that had begun after its end. Not those after which
/// the next host was killed first.
fn without_host(calls: &[Call], deaths: &[Death]) -> Vec<u64> {
    let mut times: Vec<(u64, u64)> = calls.iter().map(|call| (call.begun, call.ended)).collect();
    times.sort_unstable();
    for at in (1..times.len()).rev() {
        times[at - 1].1 = times[at - 1].1.min(times[at].1);
    }
    let first_answer = |death: &Death| {
        let at = times.partition_point(|(begun, _)| *begun < death.over);
        times.get(at).map(|(_, ended)| ended - death.killed)
    };
    deaths.iter().filter(|death| death.hosted).filter_map(first_answer).collect()
}
