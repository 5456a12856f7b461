//! Real threads on real files.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::SystemClock;
use crate::entropy::OsEntropy;
use crate::storage::OsStorage;

const THREADS: u32 = 64;

fn seams() -> Seams {
    Seams {
        storage: Arc::new(OsStorage::default()),
        clock: Arc::new(SystemClock::new().unwrap()),
        entropy: Arc::new(OsEntropy),
    }
}

/// Segments of 16 KiB: they roll all the time, and the background prepares them.
fn open_real(dir: &Path, found: &mut BTreeSet<u32>) -> Log {
    let sizes = Sizes {
        segment_bytes_first: 16 << 10,
        segment_bytes_max: 64 << 10,
        record_bytes_max: 1024,
        disk_bytes_max: u64::MAX,
        map: true,
    };
    let seams = seams();
    if manifest::load(&*seams.storage, dir).unwrap().is_none() {
        crate::log::open::birth::create(&seams, dir, &sizes).unwrap();
    }
    let manifest = manifest::load(&*seams.storage, dir).unwrap().unwrap();
    let visit = &mut |record: &Record<'_>, _: &Earlier<'_>| {
        let body = record.body().unwrap();
        let id = u32::from_le_bytes(body.progress.try_into().unwrap());
        assert_eq!(body.result, vec![id as u8; 100]);
        assert!(found.insert(id), "{id} twice");
        Ok(())
    };
    steps::open(seams, dir, sizes, manifest, visit).unwrap().0
}

fn commit_one(log: &Log, id: u32, level: Durability) -> Lsn {
    let (key, progress, result) = (id.to_string(), id.to_le_bytes(), vec![id as u8; 100]);
    loop {
        let body =
            Body { key: key.as_bytes(), progress: &progress, result: &result, ..Body::default() };
        match log.place(Draft::end(Ending::Completed, &body), Room::Free) {
            Ok(placed) => {
                log.commit(placed, level).unwrap();
                assert!(log.holds(placed.lsn, level));
                return placed.lsn;
            }
            Err(NoRoom::Wanted { bytes, room }) => log.rooms().make_room(bytes, room).unwrap(),
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Runs `each` on 64 threads in addition to the background's.
fn run_beside_upkeep(log: &Log, each: impl Fn(u32) + Send + std::marker::Sync) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let upkeep = scope.spawn(|| log.run_upkeep(&|| stop.load(Ordering::SeqCst), &|| {}));
        let each = &each;
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || each(n))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        stop.store(true, Ordering::SeqCst);
        log.wake_upkeep();
        upkeep.join().unwrap();
    });
}

#[test]
fn sixty_four_threads_at_sync_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let each = if is_long() { 500 } else { 20 };
    let log = open_real(dir.path(), &mut BTreeSet::new());
    log.resuming().begin_writing(false, &mut |_, _| Ok(())).unwrap();
    run_beside_upkeep(&log, |thread| {
        let mut last = Lsn::ZERO;
        for n in 0..each {
            let lsn = commit_one(&log, thread * each + n, Sync);
            assert!(lsn > last);
            last = lsn;
        }
    });
    let syncs = log.syncs.load(Ordering::SeqCst);
    let records = u64::from(THREADS * each);
    println!(
        "{records} records at Sync by {THREADS} threads: {syncs} syncs, {} segments",
        log.reading().listed().len()
    );
    assert!(syncs < records / 4, "{syncs} syncs");
    drop(log);
    let mut found = BTreeSet::new();
    let log = open_real(dir.path(), &mut found);
    assert_eq!(found, (0..THREADS * each).collect());
    drop(log);
}

#[test]
fn threads_at_all_levels_read_what_others_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let log = open_real(dir.path(), &mut BTreeSet::new());
    log.resuming().begin_writing(false, &mut |_, _| Ok(())).unwrap();
    run_beside_upkeep(&log, |thread| {
        for n in 0..20 {
            let id = thread * 20 + n;
            let level = [Sync, Flush, Lazy, Flush][(id % 4) as usize];
            let lsn = commit_one(&log, id, level);
            log.reading()
                .read(lsn, |record| {
                    assert_eq!(record.body().unwrap().progress, id.to_le_bytes());
                    Ok(())
                })
                .unwrap();
            // Like a replay, it waits for the latest placed record.
            if n % 5 == 0 {
                log.commit_earlier(lsn, Sync).unwrap();
                assert!(log.holds(lsn, Sync));
            }
        }
    });
    log.resuming().close(|_| {}).unwrap();
    let mut found = BTreeSet::new();
    open_real(dir.path(), &mut found);
    assert_eq!(found.len() as u32, THREADS * 20);
}
