//! The log alone, on the simulated disk: its state after every crash, fault and damage.
//!
//! [`Player`] runs a scripted workload and keeps an outside record of it, [`History`]: the records placed, and those
//! acknowledged at each level. [`check`] reopens the disk and compares it with that record. Everything is deterministic;
//! each failing case prints how to replay it.

mod crash;
mod damage;
mod fault;
mod levels;
mod rules;
mod threads;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::open::recovery::Report;
use super::open::scan;
use super::open::steps::{self, Earlier};
use super::upkeep::Due;
use super::{Log, NoRoom, Placed, Room, Seams, Sizes};
use crate::clock::ManualClock;
use crate::entropy::{Entropy, SeededEntropy};
use crate::manifest;
use crate::operation::Durability::{self, Flush, Lazy, Sync};
use crate::record::{Body, Draft, Ending, Kind, Record};
use crate::storage::Storage;
use crate::storage::faulty::{self, FaultyStorage};
use crate::storage::memory::MemoryStorage;
use crate::types::{Lsn, Token, WallMillis};
use crate::{Error, ErrorKind, Result};

/// The path of every store of these tests.
fn dir() -> &'static Path {
    Path::new("/store")
}

fn log_dir() -> PathBuf {
    dir().join("log")
}

/// Segments of one page, then two: a workload of forty operations rolls several times.
const SIZES: Sizes = Sizes {
    segment_bytes_first: 4096,
    segment_bytes_max: 8192,
    record_bytes_max: 1024,
    disk_bytes_max: u64::MAX,
    map: true,
};

/// The reserve of a claim for its ending.
const RESERVE: u64 = 900;

/// Whether to try the whole product of cases, for over an hour.
fn is_long() -> bool {
    std::env::var_os("ONLYONCE_WHOLE").is_some()
}

/// One machine: a disk, behind a wrapper that can fail it, and clocks.
#[derive(Clone)]
struct World {
    disk: MemoryStorage,
    faulty: FaultyStorage,
    clock: Arc<ManualClock>,
    seed: u64,
    /// Whether opens take random steps; otherwise LSNs continue where they would without.
    steps: bool,
}

/// Draws salts that differ in their high bits only, and no steps.
#[derive(Debug)]
struct NoSteps(SeededEntropy);

impl Entropy for NoSteps {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        self.0.fill(bytes)?;
        if bytes.len() == 8 {
            bytes[..5].fill(0);
        }
        Ok(())
    }
}

impl World {
    fn new() -> Self {
        let disk = MemoryStorage::new();
        disk.create_dir(dir()).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        World::over(disk, 1)
    }

    /// Its file system can't exchange names.
    fn without_exchange() -> Self {
        let world = World::new();
        world.disk.set_no_exchange();
        world
    }

    /// The wall clock stands near the epoch, so that LSNs continue from the extent and not from the clock: any LSN that
    /// could be issued twice is.
    fn over(disk: MemoryStorage, seed: u64) -> Self {
        let faulty = FaultyStorage::new(Arc::new(disk.clone()));
        World { disk, faulty, clock: Arc::new(ManualClock::new(WallMillis(0))), seed, steps: true }
    }

    /// The same disk for the next process, which draws other salts.
    fn next(&self) -> Self {
        World::over(self.disk.clone(), self.seed + 1)
    }

    fn seams(&self) -> Seams {
        Seams {
            storage: Arc::new(self.faulty.clone()),
            clock: Arc::<ManualClock>::clone(&self.clock),
            entropy: match SeededEntropy::new(self.seed) {
                entropy if self.steps => Arc::new(entropy),
                entropy => Arc::new(NoSteps(entropy)),
            },
        }
    }
}

/// The event between two opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Closed,
    Killed,
    PowerLost,
}

/// The subject of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Claim,
    End,
    Update,
    Forget,
}

/// A record that was placed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Item {
    id: u32,
    what: What,
    /// The item that claimed the key.
    claim: u32,
    token: Token,
    /// How far tokens are ahead of positions there.
    ahead: u64,
    bytes: usize,
    lsn: Lsn,
    /// The strongest level known for it.
    held: Option<Durability>,
}

impl Item {
    fn key(&self) -> String {
        format!("key-{}", self.claim)
    }

    fn result(&self) -> Vec<u8> {
        (0..self.bytes).map(|at| (at as u32 ^ self.id) as u8).collect()
    }

    fn draft(&self) -> Draft {
        let (key, result, id) = (self.key(), self.result(), self.id.to_le_bytes());
        let token = Some(self.token).filter(|_| self.what != What::Claim);
        let body = Body {
            key: key.as_bytes(),
            token,
            ahead: if token.is_none() { self.ahead } else { 0 },
            attempt: 1,
            progress: &id,
            result: &result,
            ..Body::default()
        };
        match self.what {
            What::Claim => Draft::claim(&body),
            What::End => Draft::end(Ending::Completed, &body),
            What::Update => Draft::update(&body),
            What::Forget => Draft::forget(&body),
        }
    }

    /// Returns whether a record found is the one placed; copies spell the token out.
    fn is_told_by(&self, record: &Record<'_>) -> bool {
        let kind = match self.what {
            What::Claim => Kind::Claim,
            What::End => Kind::End,
            What::Update => Kind::Update,
            What::Forget => Kind::Forget,
        };
        let body = record.body().unwrap();
        record.kind == kind
            && body.key == self.key().as_bytes()
            && body.result == self.result()
            && body.attempt == 1
            && body.token_at(record.lsn) == self.token
            && record.ending() == Some(Ending::Completed).filter(|_| self.what == What::End)
    }
}

/// The outside record of one store's whole life.
#[derive(Clone, Default, Debug)]
struct History {
    items: BTreeMap<u32, Item>,
    /// The records of the log in order, if nothing is lost: those the last open settled, and those placed since.
    standing: Vec<u32>,
    /// Every LSN given so far is below or at it.
    highest: Lsn,
    /// The same of tokens.
    highest_token: Option<Token>,
}

/// The records shown by an open: ids with their places, in order.
type Seen = Vec<(u32, Lsn)>;

impl History {
    /// Compares the records shown by an open with those acknowledged: they are a prefix of those placed, and long enough.
    fn verify(&self, seen: &Seen, fate: Fate) -> Result<(), String> {
        let ids: Vec<u32> = seen.iter().map(|(id, _)| *id).collect();
        if !self.standing.starts_with(&ids) {
            return Err(format!(
                "seen {ids:?} is no prefix of what was placed, {:?}",
                self.standing
            ));
        }
        for id in self.standing.get(ids.len()..).unwrap_or_default() {
            let item = &self.items[id];
            let must_hold = match (fate, item.held) {
                (Fate::Closed, _) | (_, Some(Sync)) | (Fate::Killed, Some(Flush)) => true,
                (Fate::Killed | Fate::PowerLost, _) => false,
            };
            if must_hold {
                return Err(format!("lost to {fate:?}: {item:?}"));
            }
        }
        Ok(())
    }

    /// Records that were seen are durable from now on, the others are lost for good.
    fn settle(&mut self, seen: &Seen) {
        self.standing = seen.iter().map(|(id, _)| *id).collect();
        for (id, lsn) in seen {
            let item = self.items.get_mut(id).unwrap();
            item.held = Some(Sync);
            item.lsn = *lsn;
        }
    }

    fn issue(&mut self, lsn: Lsn) {
        assert!(lsn > self.highest, "lsn {lsn} was issued before ({})", self.highest);
        self.highest = lsn;
    }

    fn issue_token(&mut self, token: Token) {
        let before = self.highest_token;
        assert!(Some(token) > before, "token {token} was issued before ({before:?})");
        self.highest_token = Some(token);
    }
}

/// A log that was opened and whose tail, if it had to be, was made durable.
struct Opened {
    log: Log,
    report: Report,
    seen: Seen,
}

/// Opens the store, creates it first if need be, shows its records, and settles an uncovered tail.
fn open(world: &World, history: &mut History, fate: Fate) -> Result<Opened, Wrong> {
    let seams = world.seams();
    let storage = &*seams.storage;
    let manifest = match manifest::load(storage, dir())? {
        Some(manifest) => manifest,
        None if scan::holds_records(storage, dir())? => {
            return Err(Wrong::Claim("a store with records and without a manifest".into()));
        }
        None => {
            crate::log::open::birth::create(&seams, dir(), &SIZES)?;
            manifest::load(storage, dir())?.unwrap()
        }
    };
    let mut seen = Seen::new();
    let mut wrong = None;
    let visit = &mut |record: &Record<'_>, _: &Earlier<'_>| {
        let body = record.body().unwrap();
        let id = u32::from_le_bytes(body.progress.try_into().unwrap());
        match history.items.get(&id) {
            Some(item) if item.is_told_by(record) => {}
            other => wrong = Some(format!("{record:?} is not what was placed, {other:?}")),
        }
        seen.push((id, record.lsn));
        Ok(())
    };
    let (log, report) = steps::open(seams, dir(), SIZES, manifest, visit)?;
    if let Some(wrong) = wrong {
        return Err(Wrong::Claim(wrong));
    }
    history.verify(&seen, fate).map_err(Wrong::Claim)?;
    if log.has_unsettled_tail() {
        begin(&log, &mut seen, history)?;
    }
    history.settle(&seen);
    Ok(Opened { log, report, seen })
}

/// Begins to write, and follows the records that move.
fn begin(log: &Log, seen: &mut Seen, history: &mut History) -> Result<()> {
    log.resuming().begin_writing(false, &mut |from, record| {
        history.issue(record.lsn);
        let place = seen.iter_mut().find(|(_, lsn)| *lsn == from).unwrap();
        assert!(history.items[&place.0].is_told_by(record));
        place.1 = record.lsn;
        Ok(())
    })
}

/// Why a run stopped: a failing call, or a broken promise of the log.
#[derive(Debug)]
enum Wrong {
    World(Error),
    Claim(String),
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        Wrong::World(error)
    }
}

/// One step of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Claim(Durability),
    /// Ends the oldest claim in flight, with this many bytes.
    End(Durability, usize),
    Update(Durability),
    Forget(Durability),
    /// Places three records, then waits for the last at `Sync` and the others at their levels.
    Batch(usize),
    /// This many milliseconds pass, and the background does its due work.
    Pass(u64),
    SyncAll,
    /// Closes cleanly and opens again.
    Reopen,
    /// Opens, reads, closes: nothing is written.
    Look,
    /// The process ends without a close, and the next one opens.
    Kill,
}

/// Every level, rolls, idling, clean reopenings, kills: some forty operations.
fn workload() -> Vec<Op> {
    use Op::*;
    vec![
        Claim(Sync),
        End(Sync, 500),
        Claim(Flush),
        Claim(Lazy),
        End(Flush, 800),
        Pass(20),
        Claim(Sync),
        Update(Lazy),
        End(Lazy, 900),
        Pass(5),
        Batch(900),
        End(Sync, 10),
        Pass(2000),
        Batch(800),
        Pass(20),
        Reopen,
        Look,
        Claim(Flush),
        End(Lazy, 900),
        Claim(Lazy),
        Update(Flush),
        End(Flush, 900),
        Claim(Flush),
        End(Lazy, 880),
        Pass(1),
        Batch(900),
        Claim(Sync),
        Batch(900),
        Pass(20),
        Kill,
        Claim(Sync),
        End(Flush, 900),
        Forget(Sync),
        Claim(Lazy),
        End(Lazy, 900),
        Claim(Flush),
        End(Flush, 900),
        Batch(900),
        Update(Lazy),
        Claim(Lazy),
        End(Flush, 850),
        Pass(1000),
        SyncAll,
        Pass(20),
        Reopen,
        Claim(Sync),
        End(Sync, 640),
        Claim(Flush),
        Batch(900),
    ]
}

/// Runs a workload and keeps the record of it.
struct Player {
    world: World,
    history: History,
    opened: Option<Opened>,
    /// How the last process ended.
    fate: Fate,
    in_flight: VecDeque<u32>,
    next_id: u32,
    /// Errors met on the way, where the run continues after them.
    errors: Vec<Error>,
    /// How often a record went into another segment than the one before it, recoveries excluded.
    rolls: u64,
    /// The calls of each process that ended, if the wrapper logs them.
    calls: Vec<Vec<faulty::Op>>,
}

impl Player {
    fn new(world: World) -> Self {
        Player::after(world, History::default(), Fate::Killed)
    }

    fn after(world: World, history: History, fate: Fate) -> Self {
        let next_id = history.items.keys().next_back().map_or(0, |id| id + 1);
        Player {
            world,
            history,
            opened: None,
            fate,
            in_flight: VecDeque::new(),
            next_id,
            errors: Vec::new(),
            rolls: 0,
            calls: Vec::new(),
        }
    }

    /// Runs until the end, or until the world fails an operation.
    fn play(&mut self, ops: &[Op]) -> Result<(), Wrong> {
        ops.iter().try_for_each(|op| self.op(*op))
    }

    /// Runs to the end, whatever fails.
    fn play_on(&mut self, ops: &[Op]) -> Result<(), String> {
        for op in ops {
            match self.op(*op) {
                Ok(()) => {}
                Err(Wrong::World(error)) => self.errors.push(error),
                Err(Wrong::Claim(what)) => return Err(format!("at {op:?}: {what}")),
            }
        }
        Ok(())
    }

    fn op(&mut self, op: Op) -> Result<(), Wrong> {
        match op {
            Op::Claim(level) => {
                let id = self.place(What::Claim, None, 0)?;
                self.commit(id, level)?;
                self.in_flight.push_back(id.0);
            }
            Op::End(level, bytes) => {
                let claim = self.in_flight.front().copied();
                let id = self.place(What::End, claim, bytes)?;
                self.in_flight.pop_front();
                self.commit(id, level)?;
            }
            Op::Update(level) => {
                let claim = self.in_flight.front().copied();
                let id = self.place(What::Update, claim, 40)?;
                self.commit(id, level)?;
            }
            Op::Forget(level) => {
                let id = self.place(What::Forget, None, 0)?;
                self.commit(id, level)?;
            }
            Op::Batch(bytes) => {
                let first = self.place(What::End, None, bytes)?;
                let second = self.place(What::End, None, bytes / 2)?;
                let third = self.place(What::End, None, 8)?;
                self.commit(first, Flush)?;
                self.commit(third, Sync)?;
                self.commit(second, Lazy)?;
            }
            Op::Pass(millis) => {
                self.open()?;
                self.world.clock.advance(millis);
                self.steps()?;
            }
            Op::SyncAll => {
                self.open()?.sync()?;
                for id in self.history.standing.clone() {
                    self.acknowledge(id, Sync);
                }
            }
            Op::Reopen | Op::Look => {
                let closed = self.open()?.resuming().close(|_| {});
                self.end_process(if closed.is_ok() { Fate::Closed } else { Fate::Killed });
                closed?;
                self.open()?;
            }
            Op::Kill => {
                self.open()?;
                self.end_process(Fate::Killed);
                self.open()?;
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<&Log, Wrong> {
        if self.opened.is_none() {
            // Each process draws other salts, those that fail to open too.
            self.world.seed += 1;
            let opened = open(&self.world, &mut self.history, self.fate);
            if opened.is_err() {
                self.calls.push(self.world.faulty.take_log());
            }
            self.opened = Some(opened?);
            self.fate = Fate::Killed;
        }
        Ok(&self.opened.as_ref().unwrap().log)
    }

    fn end_process(&mut self, fate: Fate) {
        self.opened = None;
        self.fate = fate;
        self.in_flight.clear();
        self.calls.push(self.world.faulty.take_log());
    }

    /// Places like an engine: it begins to write, and makes space, when the log asks for it.
    fn place(
        &mut self,
        what: What,
        claim: Option<u32>,
        bytes: usize,
    ) -> Result<(u32, Placed), Wrong> {
        self.open()?;
        let id = self.next_id;
        self.next_id += 1;
        let token = claim.map_or(Token(7), |claim| self.history.items[&claim].token);
        let (lsn, held) = (Lsn::ZERO, None);
        let claim_id = claim.unwrap_or(id);
        let mut item = Item { id, what, claim: claim_id, token, ahead: 0, bytes, lsn, held };
        let room = match what {
            What::Claim => Room::Reserve(RESERVE),
            What::End if claim.is_some() => Room::Spend(RESERVE),
            _ => Room::Free,
        };
        let opened = self.opened.as_mut().unwrap();
        let active = |log: &Log| (log.is_writing(), log.tail.lock().active.identity.ordinal);
        let before = active(&opened.log);
        let placed = loop {
            item.ahead = opened.log.ahead().unwrap_or(0);
            match opened.log.place(item.draft(), room) {
                Ok(placed) => break placed,
                Err(NoRoom::Wanted { bytes, room }) => opened.log.rooms().make_room(bytes, room)?,
                Err(NoRoom::NotWriting) => {
                    if opened.log.is_poisoned() {
                        return Err(opened.log.poisoned().into());
                    }
                    begin(&opened.log, &mut opened.seen, &mut self.history)?;
                    if !opened.log.is_writing() {
                        return Err(Wrong::Claim("it began to write, and doesn't".into()));
                    }
                }
                Err(NoRoom::Full) => panic!("LSNs have run out"),
            }
        };
        self.rolls += u64::from(before.0 && active(&opened.log) != before);
        self.history.issue(placed.lsn);
        item.lsn = placed.lsn;
        if what == What::Claim {
            item.token = placed.lsn.token(item.ahead);
            self.history.issue_token(item.token);
        }
        self.history.standing.push(id);
        self.history.items.insert(id, item);
        Ok((id, placed))
    }

    fn commit(&mut self, (id, placed): (u32, Placed), level: Durability) -> Result<(), Wrong> {
        let log = &self.opened.as_ref().unwrap().log;
        log.commit(placed, level)?;
        if !log.holds(placed.lsn, level) {
            return Err(Wrong::Claim(format!(
                "{id} was acknowledged and does not hold at {level:?}"
            )));
        }
        self.acknowledge(id, level);
        Ok(())
    }

    fn acknowledge(&mut self, id: u32, level: Durability) {
        let item = self.history.items.get_mut(&id).unwrap();
        item.held = match (item.held, level) {
            (Some(Sync), _) | (_, Sync) => Some(Sync),
            (Some(Flush), _) | (_, Flush) => Some(Flush),
            _ => Some(Lazy),
        };
    }

    fn steps(&mut self) -> Result<(), Wrong> {
        let log = &self.opened.as_ref().unwrap().log;
        for _ in 0..100 {
            match log.step()? {
                Due::Now => {}
                Due::In(_) => return Ok(()),
            }
        }
        Err(Wrong::Claim("the background finds no rest".into()))
    }
}

/// The result of a check.
struct Checked {
    report: Report,
    openings: u64,
}

/// Reopens what is left on `disk`: every acknowledged record is there and right, nothing else is; a second
/// opening sees the same; the next LSN is a new one; and what is placed then holds through a power loss.
fn check(disk: &MemoryStorage, history: &History, fate: Fate) -> Result<Checked, String> {
    let mut history = history.clone();
    let world = World::over(disk.kill_clone(), 1000);
    let tell = |what: &str, wrong: Wrong| match wrong {
        Wrong::World(error) => format!("{what} refused: {error:?}"),
        Wrong::Claim(claim) => format!("{what}: {claim}"),
    };
    let first = open(&world, &mut history, fate).map_err(|wrong| tell("opening", wrong))?;
    read_all(&first.log, &first.seen, &history).map_err(|what| format!("opening: {what}"))?;
    let report = first.report;
    drop(first.log);

    let standing = history.standing.clone();
    let mut player = Player::after(world.next(), history, Fate::Killed);
    player.open().map_err(|wrong| tell("second opening", wrong))?;
    let seen: Vec<u32> = player.opened.as_ref().unwrap().seen.iter().map(|(id, _)| *id).collect();
    if seen != standing {
        return Err(format!("the second opening saw {seen:?}, the first {standing:?}"));
    }
    player.op(Op::Claim(Sync)).map_err(|wrong| tell("writing on", wrong))?;
    let opened = player.opened.as_mut().unwrap();
    let probe = *player.history.standing.last().unwrap();
    opened.seen.push((probe, player.history.items[&probe].lsn));
    read_all(&opened.log, &opened.seen, &player.history)
        .map_err(|what| format!("writing on: {what}"))?;

    let after = player.world.disk.crash_clone(crate::storage::memory::Crash::NONE);
    let mut history = player.history;
    open(&World::over(after, 2000), &mut history, Fate::PowerLost)
        .map_err(|wrong| tell("third opening", wrong))?;
    Ok(Checked { report, openings: 3 })
}

/// Every record seen is read at its place, and is the one placed.
fn read_all(log: &Log, seen: &Seen, history: &History) -> Result<(), String> {
    for (id, lsn) in seen {
        let is_right = log
            .reading()
            .read(*lsn, |record| Ok(history.items[id].is_told_by(&record)))
            .map_err(|error| format!("reading {id} at {lsn}: {error:?}"))?;
        if !is_right {
            return Err(format!("another record than {id} at {lsn}"));
        }
    }
    Ok(())
}

/// A number that stands for everything on the disk and every expectation, so that no state is checked twice.
fn fingerprint(disk: &MemoryStorage, history: &History) -> u64 {
    let mut hasher = DefaultHasher::new();
    for id in &history.standing {
        (id, history.items[id].held.map(|level| level as u8)).hash(&mut hasher);
    }
    history.highest.hash(&mut hasher);
    for (path, _) in disk.files() {
        path.hash(&mut hasher);
        disk.read(&path).unwrap().hash(&mut hasher);
    }
    hasher.finish()
}

#[test]
fn a_workload_without_faults_is_whole_after_every_end() {
    let mut player = Player::new(World::new());
    player.play(&workload()).unwrap();
    let history = player.history.clone();
    assert!(history.items.len() > 30);
    let (records, calls) = (history.items.len(), player.world.disk.changes());
    println!("{records} records, {calls} calls, {} rolls", player.rolls);
    assert!(player.rolls >= 4);
    check(&player.world.disk.kill_clone(), &history, Fate::Killed).unwrap();
    player.open().unwrap().resuming().close(|_| {}).unwrap();
    let checked = check(&player.world.disk.kill_clone(), &history, Fate::Closed).unwrap();
    assert!(checked.report.was_clean);
    assert_eq!(checked.report.cut, None);
}
