//! Values: what is recorded is what a later claim gets, by each codec.

use onlyonce::testing::Sim;
use onlyonce::value::{Bincode, Codec, Format, Json, Typed};
use onlyonce::{Claim, ClaimGuard, Decode, Encode, Error, ErrorKind, Payload, Recorded, Result};
use onlyonce::{Run, Store};
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
    assert!(matches!(run, Run::Done(done) if done == value()));
    assert_eq!(told, Some(ErrorKind::Invalid));
    let missing = replayed(&store, "k").missing().unwrap().to_owned();
    assert!(missing.contains("does not decode again"), "{missing}");
}
