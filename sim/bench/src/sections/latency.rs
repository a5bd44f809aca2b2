//! From queued to begun, and from done to reported, of the jobs of the first part.

use std::time::Instant;

use super::{Section, Timeline};
use crate::sections::create::Measured;
use crate::stats::Samples;
use crate::table::Table;

/// The tables.
pub fn section(measured: &Measured) -> Section {
    let mut section = Section::new("3. Latency of jobs (creates and destroys of part 1; the poll was waiting)");
    let spans = |from: fn(&Timeline) -> Instant, to: fn(&Timeline) -> Instant| -> Samples {
        let all = measured.creates.iter().chain(&measured.destroys);
        all.map(|job| to(job).saturating_duration_since(from(job))).collect()
    };
    let mut table = Table::of_samples("Into the runner");
    table.samples("submitted -> claimed by the poll", &spans(|job| job.submitted, |job| job.claimed));
    table.samples("submitted -> poll answer written", &measured.answered);
    let begun = spans(|job| job.submitted, |job| job.begun);
    table.samples("submitted -> job begun by the runner", &begun);
    let started = spans(|job| job.submitted, Timeline::first_stage);
    table.samples("submitted -> journalled, first stage begins", &started);
    section.tables.push(table);

    let mut table = Table::of_samples("Out of the runner");
    table.samples("last stage -> job done", &spans(Timeline::last_stage, |job| job.done));
    table.samples("job done -> journalled, reported, taken by the API", &spans(|job| job.done, |job| job.reported));
    section.tables.push(table);

    let ms = |samples: &Samples| samples.percentile(95).as_secs_f64() * 1e3;
    section.at_most("queued -> job begun, p95", ms(&begun), 10.0, " ms");
    section.at_most("queued -> first stage begun, p95", ms(&started), 10.0, " ms");
    section
}
