//! A month of mixed retention in simulated time: the disk compared with live bytes, and bytes written with new ones.

use onlyonce::Store;

use crate::progress::Progress;
use crate::traffic::{Sample, Traffic};
use crate::work::{Args, mib};

pub fn run(args: &Args) {
    let days = args.number("--days", 30);
    let pairs_a_minute = args.number("--pairs", 2_000_000).div_ceil(days * 24 * 60);
    println!("\n{days} days of {pairs_a_minute} pairs a minute, kept from an hour to a year\n");
    println!(
        "| day | live MiB | files | segment | most, of 2 x live + 2 segments | moved / given back: f | 1/(1-f) | written / new |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    let mut traffic = Traffic::new(Store::builder());
    let (mut before, mut worst) = (traffic.sample(), 0.0_f64);
    let first_segment = before.segment;
    let mut progress = Progress::new(days * 24, "hours");
    for day in 1..=days {
        let mut most = 0.0_f64;
        let mut sample = before;
        for hour in 1..=24 {
            sample = traffic.hour(pairs_a_minute);
            // With less live than that, the three segments prepared ahead take more.
            if sample.live > first_segment {
                most = most.max(sample.share_of_bound());
            }
            progress.show((day - 1) * 24 + hour);
        }
        progress.clear();
        print_day(&day.to_string(), &sample, &before, most);
        worst = worst.max(most);
        before = sample;
    }
    let first = Sample::default();
    print_day("all", &before, &first, worst);
}

fn print_day(name: &str, now: &Sample, before: &Sample, most: f64) {
    let part = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
    let (moved, new) = (now.moved - before.moved, now.new - before.new);
    let f = part(moved, now.reclaimed - before.reclaimed);
    println!(
        "| {name} | {:.1} | {:.1} | {:.0} | {most:.2} | {f:.2} | {:.2} | {:.2} |",
        mib(now.live),
        mib(now.disk),
        mib(now.segment),
        1.0 / (1.0 - f),
        part(new + moved, new),
    );
}
