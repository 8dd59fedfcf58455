//! Hit ratio over beta as an SVG: a panel for each model and algorithm, a line for each policy. Follows the reader's
//! light or dark colours.

use crate::policy::{MAIN, Policy};
use crate::replay::Tally;
use crate::study::{BETA_MOST, Outcome};
use std::fmt::Write as _;
use std::ops::RangeInclusive;

const WIDTH: f64 = 920.0;
const PANEL_WIDTH: f64 = 360.0;
const PANEL_HEIGHT: f64 = 220.0;
const LEFTS: [f64; 2] = [70.0, 520.0];
const FIRST_TOP: f64 = 100.0;
const ROW: f64 = 310.0;

/// One policy's line; of each pair of colours the second is for dark backgrounds.
struct Line {
    policy: Policy,
    class: &'static str,
    label: &'static str,
}

const LINES: [Line; 6] = [
    Line { policy: Policy::Belady, class: "belady", label: "Belady" },
    Line { policy: Policy::ExactLru, class: "lru", label: "exact LRU" },
    Line { policy: Policy::AgeBuckets, class: "age", label: "age buckets" },
    Line { policy: Policy::ScoreBuckets, class: "score", label: "score buckets" },
    Line { policy: Policy::FadingBuckets, class: "fading", label: "fading score" },
    Line { policy: Policy::FadingWithPrefetch, class: "prefetch", label: "fading, prefetch k/8" },
];

const STYLE: &str = "\
<style>
 .ground { fill: #ffffff } text { fill: #1f2328 } .grid { stroke: #d0d7de }
 .line { fill: none; stroke-width: 2 }
 .belady { stroke: #1a7f37 } .lru { stroke: #8c959f; stroke-width: 5 } .age { stroke: #0b62a4 }
 .score { stroke: #c2410c } .prefetch { stroke: #8250df; stroke-dasharray: 6 3 }
 .fading { stroke: #bf3989 }
 .previous { stroke: #57606a; stroke-dasharray: 2 3 }
 @media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117 } text { fill: #e6edf3 } .grid { stroke: #30363d }
  .belady { stroke: #3fb950 } .lru { stroke: #6e7681 } .age { stroke: #58a6ff }
  .score { stroke: #f0883e } .prefetch { stroke: #bc8cff } .fading { stroke: #f778ba }
  .previous { stroke: #8b949e }
 }
</style>
";

/// Draws sums by model and algorithm.
pub(crate) fn chart(outcomes: &[Outcome]) -> String {
    let height = FIRST_TOP + ROW * outcomes.len().div_ceil(2) as f64 - 30.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n{STYLE}\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text x=\"{}\" y=\"24\" text-anchor=\"middle\" font-size=\"15\">\
         Hit ratio of a cache of Q = k (1 + beta) slots, by eviction policy (scales differ)</text>\n",
        WIDTH / 2.0
    );
    legend(&mut svg);
    for (at, outcome) in outcomes.iter().enumerate() {
        let top = FIRST_TOP + ROW * (at / 2) as f64;
        panel(&mut svg, outcome, LEFTS[at % 2], top);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    let entries = LINES.iter().map(|line| (line.class, line.label)).chain([("previous", "last step")]);
    for ((class, label), x) in entries.zip([60.0, 158.0, 268.0, 388.0, 516.0, 638.0, 802.0]) {
        writeln!(
            svg,
            "<path class=\"line {class}\" d=\"M{x} 50h28\"/><text x=\"{}\" y=\"54\">{label}</text>",
            x + 34.0
        )
        .expect("a string takes it");
    }
}

/// The tenths between which a panel's ratios lie.
fn tenths(outcome: &Outcome) -> RangeInclusive<u8> {
    let ratios = || outcome.main.iter().flatten().map(Tally::hit_ratio);
    let least = ratios().fold(1.0, f64::min);
    let most = ratios().fold(0.0, f64::max);
    (least * 10.0).floor() as u8..=(most * 10.0).ceil() as u8
}

fn panel(svg: &mut String, outcome: &Outcome, left: f64, top: f64) {
    let bottom = top + PANEL_HEIGHT;
    let x = |beta: usize| left + PANEL_WIDTH * beta as f64 / BETA_MOST as f64;
    let tenths = tenths(outcome);
    let (least, most) = (f64::from(*tenths.start()) / 10.0, f64::from(*tenths.end()) / 10.0);
    let y = |ratio: f64| bottom - PANEL_HEIGHT * (ratio - least) / (most - least);
    let mut say = |line: String| writeln!(svg, "{line}").expect("a string takes it");
    let [model, algorithm] = &outcome.name;
    say(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"13\">{model}, {algorithm}, k = {}</text>",
        left + PANEL_WIDTH / 2.0,
        top - 10.0,
        outcome.k
    ));
    for tenth in tenths {
        let ratio = f64::from(tenth) / 10.0;
        say(format!("<path class=\"grid\" d=\"M{left} {:.1}h{PANEL_WIDTH}\"/>", y(ratio)));
        say(format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ratio:.1}</text>", left - 8.0, y(ratio) + 4.0));
    }
    for beta in 0..=BETA_MOST {
        say(format!("<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{beta}</text>", x(beta), bottom + 18.0));
    }
    say(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">beta</text>", x(BETA_MOST / 2), bottom + 36.0));
    let of = |policy: Policy| MAIN.iter().position(|other| *other == policy).expect("a main policy");
    let previous = outcome.main[of(Policy::ExactLru)][0].hit_ratio();
    say(format!("<path class=\"line previous\" d=\"M{left} {:.1}h{PANEL_WIDTH}\"/>", y(previous)));
    // Exact LRU first, and wide: age buckets lie on it.
    for line in [&LINES[1], &LINES[0], &LINES[2], &LINES[3], &LINES[4], &LINES[5]] {
        let ratios = outcome.main[of(line.policy)].iter().map(Tally::hit_ratio);
        let points: Vec<String> =
            ratios.enumerate().map(|(beta, ratio)| format!("{:.1} {:.1}", x(beta), y(ratio))).collect();
        say(format!("<path class=\"line {}\" d=\"M{}\"/>", line.class, points.join("L")));
    }
}
