//! The log's rules, one by one: each test fails without its rule.

use std::ops::ControlFlow;

use super::*;
use crate::log::commit::Sink;
use crate::log::format::SEGMENT_HEADER_BYTES;
use crate::log::open::recovery::Plan;
use crate::log::segment;
use crate::log::{Failed, Scrubbed};
use crate::manifest::Manifest;
use crate::record;
use crate::storage::faulty::{CallFailure, CallGate, Calls, Class, Effect, Fault};
use crate::storage::memory::Crash;

/// The manifest as the next boot finds it.
fn durable_manifest(disk: &MemoryStorage) -> Manifest {
    manifest::load(&disk.crash_clone(Crash::NONE), dir()).unwrap().unwrap()
}

/// Every placed record is in a segment that a durable manifest lists; its extent never falls; at most one segment is
/// ahead. So no LSN is issued twice, whatever a crash takes back.
#[test]
fn rule_3_a_segment_is_listed_durably_before_an_lsn_in_it_is_taken() {
    let mut player = Player::new(World::new());
    let mut extent = Lsn::ZERO;
    let rolling = [Op::Claim(Flush), Op::End(Lazy, 900), Op::Forget(Sync), Op::Pass(1)];
    let rolling = rolling.into_iter().cycle().take(100);
    for op in workload().into_iter().chain(rolling).chain([Op::Kill]).chain(workload()) {
        player.op(op).unwrap();
        let manifest = durable_manifest(&player.world.disk);
        assert!(manifest.extent >= extent, "the extent fell");
        extent = manifest.extent;
        assert!(manifest.segments.iter().all(|listed| listed.end <= extent));
        let highest = player.history.highest;
        let is_listed =
            manifest.segments.iter().any(|listed| (listed.base..listed.end).contains(&highest));
        assert!(is_listed, "{op:?}: lsn {highest} is in no list");
        let tail = player.opened.as_ref().unwrap().log.tail.lock();
        let active = tail.active.identity.ordinal;
        let ahead = manifest.segments.iter().filter(|listed| listed.ordinal > active).count();
        assert!(ahead <= 1, "{op:?}: {ahead} ahead");
    }
}

/// Segments come and go with each kill, and the wall clock stands still: only the extent keeps LSNs apart.
#[test]
fn rule_3_no_lsn_is_issued_twice_however_often_it_forks() {
    let mut player = Player::new(World::new());
    for _ in 0..50 {
        // The player asserts that each LSN is above all earlier ones.
        player.play(&[Op::Claim(Flush), Op::Claim(Lazy), Op::Kill]).unwrap();
    }
}

#[test]
fn rule_4_the_clean_flag_is_cleared_durably_before_the_first_lsn() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Reopen]).unwrap();
    let clean = durable_manifest(&player.world.disk);
    assert!(clean.clean.is_some());
    player.place(What::Claim, None, 0).unwrap();
    assert_eq!(durable_manifest(&player.world.disk).clean, None);
    // A read-only open keeps it.
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Reopen, Op::Look, Op::Look]).unwrap();
    let changes = player.world.disk.changes();
    player.play(&[Op::Look]).unwrap();
    assert_eq!(player.world.disk.changes(), changes);
    assert!(durable_manifest(&player.world.disk).clean.is_some());
}

#[test]
fn rule_4_bytes_after_the_clean_end_mean_that_the_manifest_is_older() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Reopen]).unwrap();
    let old = player.world.disk.read(&manifest::path(dir())).unwrap();
    player.play(&[Op::Claim(Sync), Op::Claim(Flush)]).unwrap();
    let disk = player.world.disk.kill_clone();
    disk.write_file(&manifest::path(dir()), &old).unwrap();
    let mut history = player.history.clone();
    match open(&World::over(disk, 50), &mut history, Fate::PowerLost) {
        Err(Wrong::World(error)) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("manifest is older"), "{error}");
        }
        other => panic!("{:?}", other.map(|opened| opened.seen)),
    }
}

#[test]
fn rule_4_a_clean_store_continues_in_place_and_any_other_in_a_new_segment_above_the_clock() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Reopen, Op::Claim(Sync)]).unwrap();
    let in_use = |player: &Player| player.opened.as_ref().unwrap().log.tail.lock().active.identity;
    let first = in_use(&player);
    assert_eq!(first.ordinal, 1);
    player.world.clock.jump_wall(1_700_000_000_000);
    player.play(&[Op::Reopen, Op::Claim(Sync)]).unwrap();
    assert_eq!(in_use(&player), first);
    player.play(&[Op::Kill, Op::Claim(Sync)]).unwrap();
    assert!(in_use(&player).base.get() >= 1_700_000_000_000 << 20);
    assert_eq!(in_use(&player).base.get() % record::ALIGN as u64, 0);
    // The clock's part is bounded, so that a wrong clock can't use the LSNs up.
    player.world.clock.jump_wall(i64::MAX);
    player.play(&[Op::Kill, Op::Claim(Sync)]).unwrap();
    assert!(in_use(&player).base.get() < (1 << 62) + (1 << 20));
}

/// A sync doesn't cover records written while it runs: `durable` is what was written before it began.
#[test]
fn rule_6_a_sync_covers_only_what_was_written_before_it_began() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(1)]).unwrap();
    let gate = Arc::new(CallGate::default());
    let wait = Effect::Wait(Arc::clone(&gate));
    player.world.faulty.inject(Fault::once(Calls::Of(Class::Sync), 0, wait));
    let early = player.place(What::Forget, None, 0).unwrap();
    let log = Arc::new(player.opened.take().unwrap().log);
    let body = Body { key: b"late", progress: &[0; 4], ..Body::default() };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| log.commit(early.1, Sync));
        let is_syncing = gate.wait_arrived(1, std::time::Duration::from_secs(10));
        let late = log.place(Draft::forget(&body), Room::Free).unwrap();
        let flushed = log.commit(late, Flush);
        let meanwhile = (log.holds(late.lsn, Flush), log.holds(early.1.lsn, Sync));
        // Opened before anything is asserted, so that no thread hangs on a failure.
        gate.open();
        first.join().unwrap().unwrap();
        flushed.unwrap();
        assert!(is_syncing);
        assert_eq!(meanwhile, (true, false));
        assert!(log.holds(early.1.lsn, Sync));
        assert!(!log.holds(late.lsn, Sync), "durable without a sync of its own");
        assert!(log.durable() <= late.lsn);
    });
}

/// At every level: the old segment is durable before a byte is written into the next. Without it a power loss
/// could keep the next and lose the old one's tail.
#[test]
fn rule_7_a_roll_syncs_the_whole_old_segment_before_the_next_is_written() {
    for level in [Lazy, Flush, Sync] {
        let mut player = Player::new(World::new());
        let mut rolls = 0;
        for _ in 0..60 {
            // The background notices the records, then rests and writes what Lazy left to it.
            let ops = [Op::Claim(level), Op::End(level, 700), Op::Pass(1), Op::Pass(11)];
            player.play(&ops).unwrap();
            let disk = &player.world.disk;
            let listed = player.opened.as_ref().unwrap().log.reading().listed();
            for pair in listed.windows(2) {
                let path = |ordinal| log_dir().join(segment::file_name(ordinal));
                let next = disk.read(&path(pair[1].ordinal)).unwrap();
                if next[SEGMENT_HEADER_BYTES..].iter().any(|byte| *byte != 0) {
                    let old = path(pair[0].ordinal);
                    assert_eq!(disk.read_device(&old).unwrap(), disk.read(&old).unwrap());
                    rolls += 1;
                }
            }
        }
        assert!(rolls > 10);
    }
}

/// An answer at a level comes when the record holds at that level, not before.
#[test]
fn rule_8_sync_returns_at_durable_and_flush_at_written() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(1)]).unwrap();
    let record = player.place(What::Forget, None, 0).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let holds = || [Sync, Flush, Lazy].map(|level| log.holds(record.1.lsn, level));
    log.commit(record.1, Lazy).unwrap();
    assert_eq!(holds(), [false, false, true]);
    log.commit(record.1, Flush).unwrap();
    assert_eq!(holds(), [false, true, true]);
    let killed = player.world.disk.kill_clone();
    check(&killed, &player.history, Fate::Killed).unwrap();
    log.commit(record.1, Sync).unwrap();
    assert_eq!(holds(), [true, true, true]);
    player.acknowledge(record.0, Sync);
    check(&player.world.disk.crash_clone(Crash::NONE), &player.history, Fate::PowerLost).unwrap();
}

/// The durable end in a switch of manifests counts like a record's watermark.
#[test]
fn rule_10_a_record_below_only_the_manifests_watermark_is_no_torn_tail() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Forget(Sync)]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let manifest = log.keeper.lock().manifest.clone();
    log.rooms().switch_to(&mut log.keeper.lock(), manifest).unwrap();
    let last = player.history.items[&1].lsn;
    assert!(durable_manifest(&player.world.disk).durable > last);
    let listed = log.reading().listed()[0];
    let path = log_dir().join(segment::file_name(listed.ordinal));
    let disk = player.world.disk.kill_clone();
    disk.flip(&path, last.since(listed.base), 1).unwrap();
    let mut history = player.history.clone();
    history.items.values_mut().for_each(|item| item.held = None);
    match open(&World::over(disk, 50), &mut history, Fate::PowerLost) {
        Err(Wrong::World(error)) => assert_eq!(error.kind(), ErrorKind::Corrupt),
        other => panic!("{:?}", other.map(|opened| opened.seen)),
    }
}

/// Below the largest watermark anywhere, even one after the damage, a bad record is a loss and no torn tail.
#[test]
fn rule_11_a_bad_record_below_a_later_watermark_is_corrupt() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(1)]).unwrap();
    player.play(&[Op::Forget(Sync), Op::Forget(Sync), Op::Forget(Sync)]).unwrap();
    let path = log_dir().join(segment::file_name(1));
    let base = player.opened.as_ref().unwrap().log.reading().listed()[0].base;
    let lsns: Vec<Lsn> = player.history.items.values().skip(1).map(|item| item.lsn).collect();
    // The watermarks are the records' own.
    assert!(durable_manifest(&player.world.disk).durable <= lsns[0]);
    for (index, lsn) in lsns.iter().enumerate() {
        let disk = player.world.disk.kill_clone();
        let offset = lsn.since(base) + 30;
        disk.flip(&path, offset, 1).unwrap();
        let mut history = player.history.clone();
        history.items.values_mut().for_each(|item| item.held = None);
        let opened = open(&World::over(disk, 50), &mut history, Fate::PowerLost);
        match opened {
            // The third is covered by nothing.
            Ok(opened) => {
                assert_eq!((index, opened.seen.len()), (2, 3));
                let cut = opened.report.cut.unwrap();
                assert_eq!((cut.path, cut.offset), (path.clone(), lsn.since(base)));
                assert!(cut.bytes > 0);
            }
            Err(Wrong::World(error)) => {
                assert!(index < 2);
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert_eq!((error.path(), error.offset()), (Some(&*path), Some(lsn.since(base))));
            }
            Err(Wrong::Claim(what)) => panic!("{what}"),
        }
    }
}

/// A tail that no watermark covers may be in the page cache only. It is made durable before it is shown.
#[test]
fn rule_12_an_uncovered_tail_is_copied_and_durable_before_it_is_shown() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Claim(Flush), Op::Claim(Flush), Op::Kill]).unwrap();
    let opened = player.opened.as_ref().unwrap();
    // The second record's watermark covers the first, which stays in place.
    assert_eq!((opened.seen.len(), opened.report.copied), (3, 2));
    for crash in player.world.disk.crashes(16) {
        let disk = player.world.disk.crash_clone(crash);
        check(&disk, &player.history, Fate::PowerLost).unwrap_or_else(|e| panic!("{crash:?}: {e}"));
    }
    let manifest = durable_manifest(&player.world.disk);
    let listed = opened.log.reading().listed();
    assert_eq!(manifest.segments, listed);
    let last = listed.last().unwrap();
    for (index, (_, lsn)) in opened.seen.iter().enumerate() {
        let is_copy = opened.log.reading().read(*lsn, |record| Ok(record.is_copy)).unwrap();
        assert_eq!(is_copy, index > 0);
        assert_eq!((last.base..manifest.durable).contains(lsn), is_copy);
    }
}

/// A segment covered only up to its first record keeps none. Were it still listed, the next segment would imply that it
/// was full, and a repair without a manifest would miss records that never existed.
#[test]
fn rule_12_a_segment_without_covered_bytes_leaves_the_list() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Claim(Sync)]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let base = log.roll_over(Room::Free).unwrap();
    log.sync().unwrap();
    let start = base.plus(SEGMENT_HEADER_BYTES as u64);
    assert_eq!(log.durable(), start);
    // Its watermark is its own position.
    player.play(&[Op::Claim(Flush), Op::Kill, Op::Claim(Sync)]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let listed = log.reading().listed();
    assert!(listed.iter().all(|item| item.base != base && item.end > item.base), "{listed:?}");
    let disk = player.world.disk.kill_clone();
    disk.delete(&manifest::path(dir())).unwrap();
    let found = crate::log::survey::survey(&disk, dir()).unwrap();
    assert!(!found.has_lost_records() && found.can_be_relisted(), "{:?}", found.damages);
}

/// The old list ends at G: bytes after it, torn or whole, are never part of the log again.
#[test]
fn rule_12_records_after_the_cut_never_come_back() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(20), Op::Claim(Flush), Op::Claim(Flush)]).unwrap();
    let disk = player.world.disk.kill_clone();
    let path = log_dir().join(segment::file_name(1));
    let whole = disk.read(&path).unwrap();
    let base = player.opened.as_ref().unwrap().log.reading().listed()[0].base;
    let torn = player.history.items[&1].lsn.since(base) + 30;
    disk.flip(&path, torn, 1).unwrap();
    let mut history = player.history.clone();
    history.items.values_mut().skip(1).for_each(|item| item.held = None);
    let mut next = Player::after(World::over(disk, 60), history, Fate::PowerLost);
    next.play(&[Op::Claim(Sync)]).unwrap();
    assert_eq!(next.history.standing, [0, 3]);
    // Even if its bytes do.
    let disk = next.world.disk.kill_clone();
    disk.write_file(&path, &whole).unwrap();
    check(&disk, &next.history, Fate::Killed).unwrap();
}

/// The switch of a fork failed before any effect, for want of memory. The durable end of the log had been moved into the
/// new segment by then, and `verify` read the torn tail as damage.
#[test]
fn rule_12_a_failed_switch_moves_no_watermark() {
    let cases = [
        (Class::Write, "", CallFailure::NO_MEMORY, ErrorKind::Io),
        (Class::Exchange, "", CallFailure::NO_MEMORY, ErrorKind::Io),
        // A file system that writes nothing in place needs space for the next manifest, though its file exists.
        (Class::Write, "MANIFEST.next", CallFailure::FULL, ErrorKind::StorageFull),
        (Class::Sync, "MANIFEST.next", CallFailure::FULL, ErrorKind::StorageFull),
    ];
    for (class, file, failure, kind) in cases {
        let mut player = Player::new(World::new());
        player.play(&[Op::Claim(Sync), Op::Pass(20), Op::Claim(Flush)]).unwrap();
        let disk = player.world.disk.kill_clone();
        let path = log_dir().join(segment::file_name(1));
        let base = player.opened.as_ref().unwrap().log.reading().listed()[0].base;
        let torn = player.history.items[&1].lsn.since(base) + 30;
        disk.flip(&path, torn, 1).unwrap();
        let mut history = player.history.clone();
        history.items.get_mut(&1).unwrap().held = None;
        let mut next = Player::after(World::over(disk, 60), history, Fate::PowerLost);
        next.open().unwrap();
        let opened = next.opened.as_ref().unwrap();
        let is_fork = |log: &Log| match &log.keeper.lock().plan {
            Plan::Fork { suffix, .. } => suffix.is_empty(),
            Plan::Continue => false,
        };
        assert!(is_fork(&opened.log) && !opened.log.has_unsettled_tail());
        let before = (opened.log.queue.written(), opened.log.durable());
        let mut failed = 0;
        // One of these writes is that of the manifest, whichever it is.
        for place in 0.. {
            let fault = Fault::once(Calls::Of(class), place, Effect::Fail(failure));
            next.world.faulty.inject(if file.is_empty() { fault } else { fault.at(file) });
            let log = &next.opened.as_ref().unwrap().log;
            match log.resuming().begin_writing(false, &mut |_, _| Ok(())) {
                Ok(()) => break,
                Err(e) => assert_eq!(e.kind(), kind, "{class:?} {place}: {e}"),
            }
            assert!(!log.is_poisoned());
            failed += 1;
            assert_eq!((log.queue.written(), log.durable()), before, "{class:?} {place}");
            let mut found = 0;
            log.reading().scrub(&mut |scrubbed| {
                if let Scrubbed::Failed(e) = scrubbed {
                    panic!("{class:?} {place}: {e}");
                }
                found += 1;
                ControlFlow::Continue(())
            });
            assert!(found > 0);
            next.world.faulty.heal();
        }
        assert!(failed > 0, "{class:?}");
        next.world.faulty.heal();
        next.play(&[Op::Claim(Sync)]).unwrap();
        check(&next.world.disk.kill_clone(), &next.history, Fate::Killed).unwrap();
    }
}

#[test]
fn rule_12_a_thousand_kills_cost_little_space() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Claim(Flush)]).unwrap();
    let mut most = 0;
    for _ in 0..1000 {
        player.play(&[Op::Kill]).unwrap();
        most = player.world.disk.bytes_used().max(most);
    }
    assert!(most <= 16 * 4096, "{most} bytes");
    // With a write in each life there is a record in each: a page for it, and no more.
    for _ in 0..100 {
        player.play(&[Op::Forget(Flush), Op::Kill]).unwrap();
    }
    let used = player.world.disk.bytes_used();
    assert!(used <= most + 102 * 4096, "{used} bytes");
}

/// After a failed write or sync nothing is written any more: not even a clean flag.
#[test]
fn rule_13_after_a_failed_write_or_sync_nothing_is_written() {
    for class in [Class::Write, Class::Sync] {
        let mut player = Player::new(World::new());
        player.play(&[Op::Claim(Sync), Op::Pass(20)]).unwrap();
        let fail = Effect::Fail(CallFailure::IO);
        player.world.faulty.inject(Fault::once(Calls::Of(class), 0, fail));
        let Err(Wrong::World(error)) = player.op(Op::Claim(Sync)) else { panic!("no error") };
        assert_eq!(error.kind(), ErrorKind::Indeterminate);
        let segment = log_dir().join(segment::file_name(1));
        assert!(error.to_string().contains(segment.to_str().unwrap()), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        let changes = player.world.disk.changes();
        // The fault is healed; the poison stays.
        for op in [Op::Claim(Sync), Op::Claim(Lazy), Op::SyncAll, Op::Pass(5000), Op::Reopen] {
            match player.op(op) {
                Err(Wrong::World(error)) => assert!(
                    matches!(error.kind(), ErrorKind::Poisoned | ErrorKind::Indeterminate),
                    "{op:?}: {error:?}"
                ),
                Ok(()) => assert_eq!(op, Op::Pass(5000)),
                Err(Wrong::Claim(what)) => panic!("{what}"),
            }
            assert_eq!(player.world.disk.changes(), changes, "{op:?} wrote");
        }
        assert_eq!(durable_manifest(&player.world.disk).clean, None);
        // Reopened, it continues.
        player.play(&[Op::Claim(Sync)]).unwrap();
    }
}

/// Durable records are still read after a failure.
#[test]
fn rule_13_written_records_are_still_read_from_a_poisoned_log() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Claim(Flush)]).unwrap();
    let fail = Effect::Fail(CallFailure::IO);
    player.world.faulty.inject(Fault::once(Calls::Of(Class::Sync), 0, fail));
    assert!(player.op(Op::Claim(Sync)).is_err());
    let log = &player.opened.as_ref().unwrap().log;
    assert!(log.is_poisoned());
    for id in [0, 1] {
        let item = &player.history.items[&id];
        assert!(log.reading().read(item.lsn, |record| Ok(item.is_told_by(&record))).unwrap());
    }
}

/// No reserve counts on a spare while the next manifest's file is missing. So a call that needs space makes that file
/// first: spares alone would never be enough, and would take the whole disk.
#[test]
fn rule_20_spares_do_not_accumulate_while_the_next_manifests_file_is_missing() {
    let mut player = Player::new(World::without_exchange());
    player.play(&[Op::Claim(Sync)]).unwrap();
    let (disk, faulty) = (player.world.disk.clone(), player.world.faulty.clone());
    let spares = || {
        let names = disk.list(&log_dir()).unwrap();
        names.iter().filter(|entry| entry.name.starts_with("spare-")).count()
    };
    disk.set_bytes_max(disk.bytes_used() + (1 << 20));
    let full = Effect::Fail(CallFailure::FULL);
    faulty.inject(Fault::from(Calls::Of(Class::Create), 0, full).at("MANIFEST.next"));
    let refused = (0..100).find_map(|_| player.op(Op::Claim(Sync)).err());
    let Some(Wrong::World(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(faulty.hits() > 0 && spares() <= 2, "{} spares", spares());
    faulty.heal();
    player.play(&[Op::Claim(Sync); 5]).unwrap();
    assert!(spares() <= 4, "{} spares", spares());
}

/// Spares admit no claim then, either: they could not be listed for its ending.
#[test]
fn rule_10_no_reserve_counts_on_a_spare_while_the_next_manifests_file_is_missing() {
    let mut player = Player::new(World::without_exchange());
    // Space for a burst of claims, all of which end: the reserve stays for ten seconds.
    let burst = 40;
    player.play(&[Op::Claim(Flush)].repeat(burst)).unwrap();
    player.play(&[Op::End(Flush, 100)].repeat(burst)).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    assert!(log.keeper.lock().spares.len() > 2);
    let full = Effect::Fail(CallFailure::FULL);
    player.world.faulty.inject(Fault::from(Calls::Of(Class::Create), 0, full).at("MANIFEST.next"));
    // The next switch leaves the file missing.
    let manifest = log.keeper.lock().manifest.clone();
    log.rooms().switch_to(&mut log.keeper.lock(), manifest).unwrap();
    assert!(!log.keeper.lock().switch.is_prepared());
    let refused = (0..1000).find_map(|_| player.op(Op::Claim(Flush)).err());
    let Some(Wrong::World(error)) = refused else { panic!("{refused:?}") };
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    let in_flight = player.in_flight.len();
    assert!(in_flight > 0);
    for n in 0..in_flight {
        let ended = player.op(Op::End(Flush, 800));
        assert!(ended.is_ok(), "{n} of {in_flight}: {ended:?}");
    }
}

/// Until the manifest's name is durable there is no store; from then on it is complete.
#[test]
fn rule_21_a_crash_during_creation_leaves_a_store_or_none() {
    let (mut points, mut born, mut unborn) = (0, 0, 0);
    for point in 0.. {
        let world = World::new();
        let cut = Effect::PowerCut { bytes_kept: 0 };
        world.faulty.inject(Fault::once(Calls::Changing, point, cut));
        let made = crate::log::open::birth::create(&world.seams(), dir(), &SIZES);
        for crash in world.disk.crashes(64) {
            let disk = world.disk.crash_clone(crash);
            let is_born = manifest::load(&disk, dir()).unwrap().is_some();
            assert!(is_born || made.is_err(), "{crash:?}: lost after birth");
            assert!(is_born || !scan::holds_records(&disk, dir()).unwrap(), "{crash:?}");
            *(if is_born { &mut born } else { &mut unborn }) += 1;
            check(&disk, &History::default(), Fate::PowerLost)
                .unwrap_or_else(|what| panic!("call {point}, {crash:?}: {what}"));
        }
        points += 1;
        if made.is_ok() {
            break;
        }
    }
    println!("birth: {points} points, {born} born, {unborn} not");
    assert!(points > 8 && born > 10 && unborn > 50);
}

/// Records without a manifest are a loss, not an unfinished store.
#[test]
fn rule_21_records_without_a_manifest_are_no_unfinished_store() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync)]).unwrap();
    let disk = player.world.disk.kill_clone();
    disk.delete(&manifest::path(dir())).unwrap();
    assert!(scan::holds_records(&disk, dir()).unwrap());
}

/// A sync that finds only a note to sync makes no record durable, so another note has nothing to report. Otherwise a
/// store that is synced now and then would grow for ever.
#[test]
fn rule_7_a_sync_that_covers_only_notes_writes_no_further_note() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(1), Op::Pass(20)]).unwrap();
    let end = player.opened.as_ref().unwrap().log.end();
    for _ in 0..3 {
        player.play(&[Op::SyncAll, Op::Pass(1), Op::Pass(20)]).unwrap();
        let log = &player.opened.as_ref().unwrap().log;
        assert!(log.durable() == end && log.end() == end, "{} behind {end}", log.end());
    }
}

/// A spare that could not be made for want of a file descriptor ended each step before its sync: `Lazy` records were
/// never written as long as that lasted.
#[test]
fn rule_9_placed_records_are_synced_even_while_no_spare_can_be_made() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync)]).unwrap();
    let fail = Effect::Fail(CallFailure::TOO_MANY_OPEN);
    player.world.faulty.inject(Fault::from(Calls::Of(Class::Create), 0, fail));
    let placed = player.place(What::Forget, None, 0).unwrap();
    player.commit(placed, Lazy).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    for _ in 0..4 {
        log.step().unwrap();
        player.world.clock.advance(1000);
    }
    assert!(log.holds(placed.1.lsn, Sync));
}

/// A segment filled to the last byte that records may take still has space for a note, so an idle log covers its last
/// record there too. Without it, damage of that record would pass for a torn tail.
#[test]
fn rule_9_a_full_segment_has_space_for_an_idle_note() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(20)]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let draft = |bytes: u64| {
        let result = vec![1; usize::try_from(bytes).unwrap()];
        Draft::forget(&Body { key: b"last", progress: &[0; 4], result: &result, ..Body::default() })
    };
    let kept_free = record::HEADER_BYTES as u64 + 128;
    let rest = {
        let tail = log.tail.lock();
        tail.active.identity.capacity - tail.at - kept_free
    };
    let bytes = (0..rest).find(|bytes| draft(*bytes).len() == rest).unwrap();
    let segment = log.tail.lock().active.identity.ordinal;
    let placed = log.place(draft(bytes), Room::Free).unwrap();
    log.commit(placed, Sync).unwrap();
    // The first step sees that something was placed, the second that nothing was since.
    player.play(&[Op::Pass(1), Op::Pass(20)]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let tail = log.tail.lock();
    assert_eq!(tail.active.identity.ordinal, segment, "it did not roll");
    assert!(tail.marked > placed.lsn, "no watermark covers the last record");
    assert_eq!(log.queue.written(), tail.end());
}

/// A lookup takes the tables first and the segments then: a place in a segment that the tables still count must exist.
#[test]
fn lookups_learn_of_a_segments_removal_before_it_happens() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync); 100]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let oldest = log.oldest().unwrap().ordinal;
    let first = || log.segments.try_lock().map(|list| list[0].identity.ordinal);
    let mut told = None;
    log.drop_oldest(oldest, |_| (), |_, head| told = Some((first(), head))).unwrap();
    let (seen, head) = told.unwrap();
    assert_eq!((seen, first()), (Some(oldest), Some(head)));
    assert!(head > oldest);
}

/// A waiter for a write sleeps until the holder of the writer wakes it. A checkpoint took the writer to learn the store's
/// identity, and woke no thread: with all others asleep every claim hung for ever.
#[test]
fn a_call_that_writes_nothing_never_takes_the_writer() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync); 2]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let writer = log.writer.lock();
        scope.spawn(move || tell.send(log.store()));
        let told = told.recv_timeout(std::time::Duration::from_secs(10));
        drop(writer);
        assert_eq!(told.ok(), Some(log.store()));
    });
}

/// A leader waits for the writer while another thread's write is held, which then fails. The leader's bytes would come
/// after a hole.
#[test]
fn rule_13_a_thread_that_waited_for_the_writer_during_a_failed_write_writes_nothing() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(20)]).unwrap();
    let gate = Arc::new(CallGate::default());
    let writes = Calls::Of(Class::Write);
    player.world.faulty.inject(Fault::once(writes, 0, Effect::Wait(Arc::clone(&gate))));
    let first = player.place(What::Forget, None, 0).unwrap();
    let log = Arc::new(player.opened.take().unwrap().log);
    let segment = log_dir().join(segment::file_name(1));
    let body = Body { key: b"late", progress: &[0; 4], ..Body::default() };
    std::thread::scope(|scope| {
        let held = scope.spawn(|| log.commit(first.1, Flush));
        assert!(gate.wait_arrived(1, std::time::Duration::from_secs(10)));
        let late = log.place(Draft::forget(&body), Room::Free).unwrap();
        let leader = scope.spawn({
            let log = Arc::clone(&log);
            move || log.commit(late, Sync)
        });
        while !log.queue.is_led() {
            std::thread::yield_now();
        }
        // By now it waits for the writer, or is about to.
        (0..10_000).for_each(|_| std::thread::yield_now());
        let _ = log.failed(crate::storage::Failure::Poison(Error::new(ErrorKind::Io, "elsewhere")));
        let before = player.world.disk.read(&segment).unwrap();
        gate.open();
        let _ = held.join().unwrap();
        assert_eq!(leader.join().unwrap().unwrap_err().kind(), ErrorKind::Indeterminate);
        let at = (late.lsn.get() - log.tail.lock().active.base().get()) as usize;
        let after = player.world.disk.read(&segment).unwrap();
        assert_eq!(before[at..], after[at..], "written after a failure");
    });
}

/// A thread that checked for a failure before there was one gets the writer after it. The bytes that the failed write
/// took from the tail are lost, so nothing is left to write; that must not count as everything written.
#[test]
fn rule_13_nothing_after_a_failed_write_counts_as_written() {
    for closes_round in [false, true] {
        let mut player = Player::new(World::new());
        player.play(&[Op::Claim(Sync), Op::Pass(20)]).unwrap();
        let fail = Effect::Fail(CallFailure::IO);
        player.world.faulty.inject(Fault::once(Calls::Of(Class::Write), 0, fail));
        let lost = player.place(What::Forget, None, 0).unwrap().1;
        let log = &player.opened.as_ref().unwrap().log;
        log.commit(lost, Flush).unwrap_err();
        let late = match closes_round {
            true => log.write_round().map(drop),
            false => log.try_write().map(drop),
        };
        assert!(!log.holds(lost.lsn, Flush), "what was lost passes for written");
        let read = log.reading().read(lost.lsn, |_| Ok(()));
        assert_eq!(read.unwrap_err().kind(), ErrorKind::Indeterminate);
        assert_eq!(late, Err(Failed));
    }
}

/// Nothing is placed either.
#[test]
fn rule_13_nothing_is_placed_in_a_poisoned_log() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync)]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let end = log.end();
    let _ = log.failed(crate::storage::Failure::Poison(Error::new(ErrorKind::Io, "elsewhere")));
    let body = Body { key: b"late", progress: &[0; 4], ..Body::default() };
    assert!(log.place(Draft::forget(&body), Room::Free).is_err());
    assert_eq!(log.end(), end);
}

/// A record from before settings made segments smaller: it must not cross the end of one.
#[test]
fn a_record_that_fits_no_next_segment_is_refused() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Pass(1)]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    while log.rooms().prepare_ahead().unwrap() == Due::Now {}
    let (here, next) = {
        let tail = log.tail.lock();
        let next = tail.next.as_ref().unwrap().identity.capacity;
        (tail.active.identity.capacity - tail.at, next)
    };
    let result = vec![7; (here.max(next)) as usize];
    let body = Body { key: b"long", progress: &[0; 4], result: &result, ..Body::default() };
    for room in [Room::Free, Room::Reserve(0), Room::Spend(0), Room::Spend(2 * next), Room::Note] {
        let end = log.end();
        let placed = log.place(Draft::end(Ending::Completed, &body), room);
        assert!(placed.is_err(), "{room:?}: placed at {placed:?}");
        assert_eq!(log.end(), end, "{room:?}");
    }
}

/// If the file of a forget were removed before that of the forgotten record, a log without a manifest would show the key.
#[test]
fn a_segment_is_removed_only_after_the_files_of_earlier_ones() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync); 200]).unwrap();
    let log = &player.opened.as_ref().unwrap().log;
    let file = |ordinal| log_dir().join(segment::file_name(ordinal));
    let is_there = |ordinal| player.world.disk.read(&file(ordinal)).is_ok();
    let drop_oldest = || {
        let oldest = log.oldest().unwrap().ordinal;
        log.drop_oldest(oldest, |_| (), |_, _| ()).map(|_| oldest)
    };
    let busy = Effect::Fail(CallFailure::Kind(std::io::ErrorKind::ResourceBusy));
    player.world.faulty.inject(Fault::from(Calls::Of(Class::Remove), 0, busy).at(file(1)));
    // It has left the list, and its file stays.
    assert_eq!(drop_oldest().unwrap(), 1);
    assert!(is_there(1));
    drop_oldest().unwrap_err();
    assert!(is_there(1) && is_there(2));
    assert_eq!(log.reading().listed()[0].ordinal, 2);
    player.world.faulty.heal();
    assert_eq!(drop_oldest().unwrap(), 2);
    assert!(!is_there(1) && !is_there(2));
}

/// An open that couldn't list the directory took it for one without leftovers, and the next segment was removed before
/// them.
#[test]
fn leftovers_an_open_could_not_list_are_removed_before_the_next_segment() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync); 200]).unwrap();
    let file = |ordinal| log_dir().join(segment::file_name(ordinal));
    let busy = || Effect::Fail(CallFailure::Kind(std::io::ErrorKind::ResourceBusy));
    let cannot_remove = Fault::from(Calls::Of(Class::Remove), 0, busy()).at(file(1));
    player.world.faulty.inject(cannot_remove);
    player.opened.as_ref().unwrap().log.drop_oldest(1, |_| (), |_, _| ()).unwrap();
    let world = World::over(player.world.disk.kill_clone(), 60);
    let manifest = manifest::load(&world.disk, dir()).unwrap().unwrap();
    let opened = steps::open(world.seams(), dir(), SIZES, manifest, &mut |_, _| Ok(()));
    let (log, _) = opened.unwrap();
    world.faulty.inject(Fault::from(Calls::Of(Class::List), 0, busy()));
    log.resuming().begin_writing(false, &mut |_, _| Ok(())).unwrap();
    let drop_oldest = || log.drop_oldest(2, |_| (), |_, _| ());
    drop_oldest().unwrap_err();
    assert_eq!(log.reading().listed()[0].ordinal, 2);
    world.faulty.heal();
    drop_oldest().unwrap();
    assert!([1, 2].iter().all(|ordinal| world.disk.read(&file(*ordinal)).is_err()));
}

/// The answer was "nothing reclaimed", and "all of it judged": then a segment would have gone unread.
#[test]
fn dropping_an_unlisted_segment_or_one_not_the_oldest_is_a_bug() {
    let of_another: [fn(&Log) -> Error; 3] = [
        |log| log.drop_oldest(2, |_| (), |_, _| panic!("told")).unwrap_err(),
        |log| {
            (log.reading().walk_some(u32::MAX, Lsn::ZERO, 1, &mut |_| panic!("shown")).map(drop))
                .unwrap_err()
        },
        // The segment being written to is left.
        |log| {
            while let Some(oldest) = log.oldest() {
                log.drop_oldest(oldest.ordinal, |_| (), |_, _| ()).unwrap();
            }
            let last: Vec<_> = log.reading().listed().iter().map(|item| item.ordinal).collect();
            log.drop_oldest(last[0] + 1, |_| (), |_, _| ()).unwrap_err()
        },
    ];
    for refused in of_another {
        let mut player = Player::new(World::new());
        player.play(&[Op::Claim(Sync); 400]).unwrap();
        let log = &player.opened.as_ref().unwrap().log;
        assert!(log.reading().listed().len() > 3);
        let error = refused(log);
        assert_eq!(error.kind(), ErrorKind::Bug, "{error}");
        assert!(error.to_string().contains("bug of onlyonce"), "{error}");
        let changes = player.world.disk.changes();
        assert!(log.is_poisoned());
        assert_eq!(log.rooms().make_room(1, Room::Free).unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(player.world.disk.changes(), changes, "written after a bug");
    }
}

/// The ending of a claim waited for space while an operator interrupted the claim, which released its reserve: the sum
/// underflowed, and the panic poisoned the store.
#[test]
fn space_is_made_for_an_ending_whose_claim_has_ended_meanwhile() {
    let player = {
        let mut player = Player::new(World::new());
        player.play(&[Op::Claim(Sync)]).unwrap();
        player
    };
    let log = &player.opened.as_ref().unwrap().log;
    for room in [Room::Spend(9 * RESERVE), Room::Clear(9 * RESERVE)] {
        log.rooms().make_room(100, room).unwrap();
    }
    assert!(!log.is_poisoned());
}

/// The sum of all reserves was clamped at 0 then: the reserves of the other claims were lost, and a full disk refused
/// their results.
#[test]
fn releasing_a_reserve_twice_is_a_bug() {
    let body = Body { key: b"k", ..Body::default() };
    let of_more: [&dyn Fn(&Log); 4] = [
        &|log| log.release(2 * RESERVE + 1),
        &|log| {
            let draft = Draft::end(record::Ending::Completed, &body);
            assert_eq!(log.place(draft, Room::Spend(2 * RESERVE + 1)), Err(NoRoom::NotWriting));
        },
        &|log| {
            let draft = Draft::forget(&body);
            assert_eq!(log.place(draft, Room::Clear(2 * RESERVE + 1)), Err(NoRoom::NotWriting));
        },
        // More records become live than compaction had counted.
        &|log| assert_eq!(log.place(Draft::forget(&body), Room::Move), Err(NoRoom::NotWriting)),
    ];
    for gives_back in of_more {
        let mut player = Player::new(World::new());
        player.play(&[Op::Claim(Sync)]).unwrap();
        let log = &player.opened.as_ref().unwrap().log;
        log.place(Draft::claim(&body), Room::Reserve(RESERVE)).unwrap();
        log.release(RESERVE);
        log.place(Draft::claim(&body), Room::Reserve(RESERVE)).unwrap();
        assert!(!log.is_poisoned());
        let end = log.end();
        gives_back(log);
        assert_eq!(log.poison_cause().unwrap().kind(), ErrorKind::Bug);
        assert_eq!(log.end(), end);
    }
}

/// Recovery moved a record, and the index could not follow: its key would have read as damaged, or free.
#[test]
fn rule_12_an_index_that_cannot_follow_a_moved_record_poisons_the_store() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync), Op::Claim(Flush), Op::Claim(Flush)]).unwrap();
    let disk = player.world.disk.kill_clone();
    let (storage, mut shown): (_, Vec<Lsn>) = (World::over(disk, 60), Vec::new());
    let manifest = manifest::load(&storage.disk, dir()).unwrap().unwrap();
    let mut visit = |record: &Record<'_>, _: &Earlier<'_>| {
        shown.push(record.lsn);
        Ok(())
    };
    let (log, _) = steps::open(storage.seams(), dir(), SIZES, manifest, &mut visit).unwrap();
    let refused = log
        .resuming()
        .begin_writing(false, &mut |_, _| Err(Error::corrupt(dir(), 0, "no such key")));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(log.is_poisoned() && !log.is_writing() && shown.len() == 3);
}

/// Such bytes would imply that the manifest is older than the log. Without a clean end they are cut like a torn tail.
#[test]
fn a_close_with_rotten_bytes_after_the_end_is_not_clean() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync)]).unwrap();
    let at = player.opened.as_ref().unwrap().log.tail.lock().at + 100;
    let segment = log_dir().join(segment::file_name(1));
    player.world.disk.overwrite(&segment, at, b"x").unwrap();
    player.op(Op::Reopen).unwrap();
    let report = &player.opened.as_ref().unwrap().report;
    assert!(!report.was_clean);
    assert_eq!(report.cut.as_ref().unwrap().path, segment);
}

/// Its bytes would be after the end of the log.
#[test]
fn a_spare_with_nonzero_bytes_becomes_no_segment() {
    let mut player = Player::new(World::new());
    player.play(&[Op::Claim(Sync)]).unwrap();
    while player.opened.as_ref().unwrap().log.rooms().prepare_ahead().unwrap() == Due::Now {}
    player.end_process(Fate::Killed);
    let disk = player.world.disk.clone();
    let files =
        || disk.list(&log_dir()).unwrap().into_iter().map(|entry| log_dir().join(entry.name));
    let spares: Vec<_> = files().filter(|path| path.to_string_lossy().contains("spare-")).collect();
    // At an offset that no record reaches.
    let last = |path: &Path| disk.read(path).unwrap().len() as u64 - 1;
    spares.iter().for_each(|spare| disk.overwrite(spare, last(spare), b"x").unwrap());
    assert!(!spares.is_empty());
    player.play(&[Op::Claim(Sync); 200]).unwrap();
    assert!(spares.iter().all(|spare| disk.read(spare).is_ok_and(|bytes| bytes.ends_with(b"\0"))
        || disk.read(spare).is_err()));
    assert!(files().all(|path| disk.read(&path).unwrap().ends_with(b"\0")));
}
