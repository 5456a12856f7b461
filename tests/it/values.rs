//! Values: what is recorded is what a later claim gets, by each codec.

use onlyonce::testing::Sim;
use onlyonce::value::{Bincode, Codec, Format, Json, Typed};
use onlyonce::{Claim, ClaimGuard, Decode, Encode, Error, ErrorKind, Payload, Recorded, Result};
use onlyonce::{
    Fingerprint, OnDrop, OnInterrupted, OnUnkept, Operation, Outcome, Reconciled, Run, State, Store,
};
use serde_json::json;

fn claimed(store: &Store, key: &str) -> ClaimGuard {
    match store.claim(key).unwrap() {
        Claim::Acquired(claim) => claim,
        other => panic!("{other}"),
    }
}

fn replayed(store: &Store, key: &str) -> Recorded {
    match store.claim(key).unwrap() {
        Claim::Completed(done) => done,
        other => panic!("{other}"),
    }
}

#[derive(PartialEq, Debug, serde::Serialize, serde::Deserialize)]
struct Receipt {
    order: u64,
    lines: Vec<String>,
}

impl Typed for Receipt {
    const CODEC: Codec = Codec::Json;
    const VERSION: u32 = 1;
}

/// A codec of the program's own: the text in reverse.
#[derive(PartialEq, Debug)]
struct Reversed(String);

const REVERSED: Format = Format { codec: Codec::Custom(9), version: 4 };

impl Encode for Reversed {
    fn encode(&self, out: &mut Vec<u8>) -> Result<Format> {
        out.extend(self.0.bytes().rev());
        Ok(REVERSED)
    }
}

impl Decode for Reversed {
    fn decode(payload: &Payload, format: Format) -> Result<Self> {
        if format != REVERSED {
            return Err(Error::undecodable(format!("recorded in {format}, not in {REVERSED}")));
        }
        let text = String::from_utf8(payload.iter().rev().copied().collect());
        text.map(Reversed).map_err(|e| Error::undecodable(e.to_string()))
    }
}

#[test]
fn values_of_each_codec_are_replayed_after_a_reopening() {
    let sim = Sim::small(1);
    let store = sim.open().unwrap();
    let receipt = || Receipt { order: 17, lines: vec!["tea".into(), "\u{0}\"".into()] };
    claimed(&store, "typed").complete(&receipt()).unwrap();
    claimed(&store, "json").complete(&Json(json!({"a": [1, null]}))).unwrap();
    claimed(&store, "bincode").complete(&Bincode(receipt())).unwrap();
    claimed(&store, "own").complete(&Reversed("abc".into())).unwrap();
    sim.kill();
    drop(store);
    let store = sim.open().unwrap();
    assert_eq!(replayed(&store, "typed").decode::<Receipt>().unwrap(), receipt());
    let value = replayed(&store, "json").decode::<Json<serde_json::Value>>().unwrap();
    assert_eq!(value.0, json!({"a": [1, null]}));
    assert_eq!(&replayed(&store, "json").result()[..], br#"{"a":[1,null]}"#);
    assert_eq!(replayed(&store, "bincode").decode::<Bincode<Receipt>>().unwrap().0, receipt());
    let own = replayed(&store, "own");
    assert_eq!(
        (&own.result()[..], own.decode::<Reversed>().unwrap().0),
        (&b"cba"[..], "abc".into())
    );
    let error = own.decode::<Receipt>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Undecodable);
    assert!(error.to_string().contains("Custom(9), version 4"), "{error}");
    assert!(error.to_string().contains("Receipt in Json, version 1"), "{error}");
}

/// It was recorded, and each later claim of the key failed for ever.
#[cfg(debug_assertions)]
#[test]
fn a_value_that_could_not_be_replayed_is_refused_and_the_claim_is_returned() {
    let store = Sim::small(1).open().unwrap();
    let value = || Bincode(json!({"paid": true}));
    let error = claimed(&store, "k").complete(&value()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("does not decode again"), "{error}");
    error.into_claim().unwrap().complete(&Json(value().0)).unwrap();
    assert_eq!(replayed(&store, "k").decode::<Json<serde_json::Value>>().unwrap().0, value().0);
}

/// In a run the work is done by then: its caller gets the value, and the key is not free.
#[cfg(debug_assertions)]
#[test]
fn a_run_whose_value_could_not_be_replayed_says_so_and_is_not_repeated() {
    let store = Sim::small(1).open().unwrap();
    let value = || Bincode(json!({"paid": true}));
    let mut told = None;
    let run = store
        .runner("k")
        .on_unrecorded(|e| told = Some(e.kind()))
        .run(|_| Ok::<_, Error>(value()))
        .unwrap();
    // A test that runs once must fail: a result that was only kept for this caller looks done.
    let Run::Unrecorded(done, why) = run else { panic!("{run:?}") };
    assert_eq!((done, why.kind()), (value(), ErrorKind::Invalid));
    assert_eq!(told, Some(ErrorKind::Invalid));
    let missing = replayed(&store, "k").missing().unwrap().to_owned();
    assert!(missing.contains("does not decode again"), "{missing}");
}

/// A run whose outcome has metadata, and the record that later runs get with the value.
#[test]
fn a_run_records_the_outcome_that_its_hook_makes_and_replays_carry_the_record() {
    let store = Sim::small(1).open().unwrap();
    let run = |print: &str| {
        let op = Operation::new("k").fingerprint(Fingerprint::of(print));
        let runner = store.runner(op).outcome(|receipt: &Receipt| {
            Outcome::success(receipt).meta("order", receipt.order).meta("order", "again")
        });
        runner.run(|_| Ok::<_, Error>(Receipt { order: 17, lines: Vec::new() })).unwrap()
    };
    let first = run("a");
    assert_eq!((first.to_string(), format!("{first:?}")), ("done".into(), "Done(..)".into()));
    let again = run("a");
    let Run::Replayed(receipt, done) = &again else { panic!("{again:?}") };
    assert_eq!((receipt.order, done.attempt(), done.key().to_string()), (17, 1, "k".into()));
    assert!(done.metas().eq([("order", "17"), ("order", "again")]));
    assert_eq!(again.to_string(), format!("done before: {done}"));
    assert_eq!(format!("{again:?}"), format!("Replayed(.., {done:?})"));
    assert_eq!(again.value().unwrap().order, 17);
}

/// What the hook makes of a value is what later callers get, also after a reconciliation.
#[test]
fn an_outcome_that_is_a_failure_is_replayed_as_one() {
    let store = Sim::small(1).open().unwrap();
    let refuse = |text: &String| Outcome::failure(text).meta("status", 402);
    let run = store.runner("ran").outcome(refuse).run(|_| Ok::<_, Error>("declined".to_owned()));
    assert!(matches!(run.unwrap(), Run::Done(text) if text == "declined"));
    drop(store.claim("found").unwrap());
    let found = store.runner("found").outcome(refuse);
    let found = found.reconcile(|_| Ok::<_, Error>(Reconciled::Applied("declined".to_owned())));
    assert!(
        matches!(found.run(|_| panic!("done")).unwrap(), Run::Done(text) if text == "declined")
    );
    for key in ["ran", "found"] {
        let run = store.run(key, |_| -> Result<String> { panic!("again") }).unwrap();
        assert!(run.to_string().starts_with("failed for good: attempt 1"), "{run}");
        let Run::Failed(failed) = run else { panic!("{run:?}") };
        assert_eq!(
            (failed.meta("status"), failed.decode::<String>().unwrap()),
            (Some("402"), "declined".into())
        );
    }
    // A failure that is too large stays a failure.
    let large = |_: &String| Outcome::failure(&vec![0; 1 << 20]);
    let run = store.runner("large").outcome(large).run(|_| Ok::<_, Error>(String::new())).unwrap();
    assert!(matches!(run, Run::Done(_)));
    assert!(matches!(store.get("large").unwrap(), Some(State::Failed(f)) if f.missing().is_some()));
}

/// The work is done when the hook is called, whatever the operation says of a drop.
#[test]
fn a_panic_of_the_outcome_hook_interrupts_the_attempt() {
    let store = Sim::small(1).open().unwrap();
    let op = Operation::new("k").on_drop(OnDrop::Abort).on_interrupted(OnInterrupted::Hold);
    let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let runner = store.runner(op).outcome(|_: &String| panic!("on purpose"));
        let _ = runner.run(|_| Ok::<_, Error>("charged".to_owned()));
    }));
    assert!(panics.is_err());
    assert!(matches!(store.get("k").unwrap(), Some(State::Held(_) | State::Interrupted(_))));
}

/// A codec of the program's own that can't read what it wrote, or an outcome of another type than the run's.
#[cfg(debug_assertions)]
#[test]
fn a_run_whose_outcome_later_runs_can_not_decode_is_recorded_without_it() {
    #[derive(Debug)]
    struct WriteOnly;
    impl Encode for WriteOnly {
        fn encode(&self, _: &mut Vec<u8>) -> Result<Format> {
            Ok(REVERSED)
        }
    }
    impl Decode for WriteOnly {
        fn decode(_: &Payload, _: Format) -> Result<Self> {
            Err(Error::undecodable("never"))
        }
    }
    let store = Sim::small(1).open().unwrap();
    let own = store.run("own", |_| Ok::<_, Error>(WriteOnly)).unwrap();
    assert!(matches!(own, Run::Unrecorded(WriteOnly, _)), "{own:?}");
    let other =
        store.runner("other").outcome(|number: &Json<u64>| Outcome::success(&number.0.to_string()));
    let other = other.run(|_| Ok::<_, Error>(Json(17))).unwrap();
    assert!(matches!(other, Run::Unrecorded(Json(17), _)), "{other:?}");
    drop(claimed(&store, "found"));
    let found = store.runner("found").reconcile(|_| Ok::<_, Error>(Reconciled::Applied(WriteOnly)));
    let found = found.run(|_| panic!("it was done")).unwrap();
    assert!(matches!(found, Run::Unrecorded(WriteOnly, _)), "{found:?}");
    let parking = || Operation::new("held").on_unkept(OnUnkept::Hold);
    let held = store.run(parking(), |_| Ok::<_, Error>(WriteOnly)).unwrap();
    assert!(matches!(held, Run::Unrecorded(WriteOnly, _)), "{held:?}");
    assert!(matches!(store.claim(parking()).unwrap(), Claim::Held(_)));
    for key in ["own", "other", "found"] {
        let missing = replayed(&store, key).missing().unwrap().to_owned();
        assert!(missing.contains("would never be replayed"), "{missing}");
    }
}

/// A store with small segments, and a result that isn't copied when it is replayed.
fn large(n: u8) -> Vec<u8> {
    vec![n; 6 << 10]
}

fn filled(dir: &std::path::Path, map: bool) -> Store {
    let builder = Store::builder().segment_bytes(64 << 10).result_bytes_max(8 << 10).map(map);
    let store = builder.manual_maintenance(true).open_or_create(dir).unwrap();
    for n in 0..40_u8 {
        claimed(&store, &n.to_string()).complete(&large(n)).unwrap();
    }
    store
}

fn segments(dir: &std::path::Path) -> Vec<String> {
    let names = std::fs::read_dir(dir.join("log")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".log")).collect()
}

/// The bytes are where the store read them, whatever becomes of the store, its segment and its directory.
#[test]
fn a_payload_outlives_its_segment_its_store_and_its_directory() {
    for map in [true, false] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("keys");
        let store = filled(&dir, map);
        let before = segments(&dir);
        let payload = replayed(&store, "0").result().clone();
        let copy = payload.to_vec();
        for n in 0..40 {
            assert!(store.forget(n.to_string().as_str()).unwrap());
        }
        while store.compact(u64::MAX).unwrap().bytes_reclaimed() > 0 {}
        let after = segments(&dir);
        let first = "0000000001.log".to_owned();
        assert!(before.contains(&first) && !after.contains(&first), "{before:?} {after:?}");
        assert_eq!(payload[..], copy[..]);
        store.close(std::time::Duration::ZERO).unwrap();
        drop(store);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(payload[..], large(0)[..]);
        // Another store at the same place changes nothing either.
        drop(filled(&dir, map));
        assert_eq!(payload.decode::<Vec<u8>>().unwrap(), large(0));
        std::thread::spawn(move || assert_eq!(payload.len(), 6 << 10)).join().unwrap();
    }
}

/// Two replays of one result show the same bytes of the same map; a small one is copied, and holds nothing.
#[test]
fn a_large_result_is_not_copied_when_it_is_replayed() {
    let parent = tempfile::tempdir().unwrap();
    let store = filled(&parent.path().join("keys"), true);
    // Both live, or the second could be a copy at the place of the first.
    let (done, again) = (replayed(&store, "0"), replayed(&store, "0"));
    assert_eq!(done.result().as_ptr(), again.result().as_ptr());
    assert_eq!(done.result().clone().as_ptr(), done.result().as_ptr());
    claimed(&store, "small").complete(&[7; 4096]).unwrap();
    for n in 40..80_u8 {
        claimed(&store, &n.to_string()).complete(&large(n)).unwrap();
    }
    let (one, other) = (replayed(&store, "small"), replayed(&store, "small"));
    assert_eq!(one.result()[..], [7; 4096]);
    assert_ne!(one.result().as_ptr(), other.result().as_ptr());
}

/// `Bytes` takes a payload as it is.
#[test]
fn a_payload_becomes_bytes_without_a_copy() {
    let parent = tempfile::tempdir().unwrap();
    let store = filled(&parent.path().join("keys"), true);
    let payload = replayed(&store, "0").result().clone();
    let address = payload.as_ptr();
    let bytes = bytes::Bytes::from_owner(payload);
    drop(store);
    assert_eq!((bytes.as_ptr(), &bytes[..]), (address, &large(0)[..]));
}

/// The checksum is verified before a payload is made, by the map and by plain reads.
#[test]
fn a_large_result_that_is_damaged_is_an_error_and_no_payload() {
    use std::os::unix::fs::FileExt;
    for map in [true, false] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("keys");
        let store = filled(&dir, map);
        store.close(std::time::Duration::ZERO).unwrap();
        drop(store);
        let path = dir.join("log/0000000001.log");
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(64).position(|part| part == [3; 64]).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[4], at as u64 + 5000).unwrap();
        let store = Store::builder().map(map).open(&dir).unwrap();
        assert_eq!(store.claim("3").unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(replayed(&store, "2").result()[..], large(2)[..]);
    }
}

const COMPRESS_OVER: u32 = 1000;

fn compressing() -> onlyonce::StoreBuilder {
    Store::builder().result_bytes_max(64 << 10).compress_over(COMPRESS_OVER)
}

/// Bytes that LZ4 makes no shorter.
fn noise(len: usize) -> Vec<u8> {
    let next = |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1), next).map(|state| (state >> 56) as u8).take(len).collect()
}

/// Long results take less space, and are what they were: after a crash, a compaction, and without the setting.
#[test]
fn a_compressed_result_is_replayed_as_it_was() {
    let sim = Sim::small(1);
    let store = sim.open_with(compressing().segment_bytes(256 << 10)).unwrap();
    let text = "all work and no play ".repeat(3000);
    let written = || store.stats().bytes_written;
    let cases = [
        ("long", text.as_bytes().to_vec(), 1000),
        ("noise", noise(3000), 3300),
        ("short", vec![7; COMPRESS_OVER as usize], 1300),
        ("just", vec![7; COMPRESS_OVER as usize + 1], 300),
        ("empty", Vec::new(), 300),
    ];
    for (key, value, most) in &cases {
        let before = written();
        claimed(&store, key).complete(value).unwrap();
        store.sync().unwrap();
        let len = written() - before;
        assert!(
            len < *most && (*most < 1000 || len > value.len() as u64 || *key == "long"),
            "{key}: {len}"
        );
    }
    // A failure, one that an operator records, and a type of serde.
    claimed(&store, "failed").fail(&text).unwrap();
    drop(store.claim("resolved").unwrap());
    let Some(State::Interrupted(lost)) = store.get("resolved").unwrap() else { panic!() };
    assert!(store.resolve(&lost, onlyonce::Resolution::Record(Outcome::success(&text))).unwrap());
    let receipt = || Receipt { order: 1, lines: vec!["tea".into(); 2000] };
    claimed(&store, "typed").complete(&receipt()).unwrap();

    let check = |store: &Store| {
        for (key, value, _) in &cases {
            let done = replayed(store, key);
            assert_eq!(done.decode::<Vec<u8>>().unwrap(), *value, "{key}");
            assert_eq!(done.result().len(), value.len());
        }
        let Claim::Failed(failed) = store.claim("failed").unwrap() else { panic!() };
        assert_eq!(failed.decode::<String>().unwrap(), text);
        assert_eq!(replayed(store, "resolved").decode::<String>().unwrap(), text);
        assert_eq!(replayed(store, "typed").decode::<Receipt>().unwrap(), receipt());
    };
    check(&store);
    let _ = store.compact(u64::MAX).unwrap();
    check(&store);
    sim.kill();
    drop(store);
    let store = sim.open_with(Store::builder()).unwrap();
    check(&store);
    assert!(store.verify().unwrap().is_whole());
}

/// What a caller may record doesn't depend on how well it compresses.
#[test]
fn the_limit_on_results_concerns_their_length_before_compression() {
    let store = Sim::small(1).open_with(compressing()).unwrap();
    let error = claimed(&store, "k").complete(&vec![0; (64 << 10) + 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    error.into_claim().unwrap().complete(&vec![0; 64 << 10]).unwrap();
    assert_eq!(replayed(&store, "k").result()[..], vec![0; 64 << 10]);
}
