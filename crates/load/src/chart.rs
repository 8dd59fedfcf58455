//! Latency over load, as an SVG of two panels: time to the first token, and time per token after it.

use crate::percentiles::Percentiles;
use crate::scale::Scale;
use crate::summary::Summary;
use crate::workload::Load;
use std::fmt::Write as _;

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 360.0;
/// Of one panel's plot, inside its labels.
const PLOT_WIDTH: f64 = 360.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = HEIGHT - 56.0;

/// A percentile that is drawn.
struct Line {
    name: &'static str,
    of: fn(&Percentiles) -> f64,
    style: &'static str,
}

const LINES: [Line; 2] = [
    Line { name: "p50", of: |percentiles| percentiles.p50, style: "stroke=\"#0b62a4\"" },
    Line { name: "p95", of: |percentiles| percentiles.p95, style: "stroke=\"#c2410c\" stroke-dasharray=\"6 3\"" },
];

/// One of the two plots.
struct Panel {
    title: &'static str,
    left: f64,
    of: fn(&Summary) -> Option<Percentiles>,
}

const PANELS: [Panel; 2] = [
    Panel { title: "TTFT, ms", left: 70.0, of: |summary| summary.ttft_ms },
    Panel { title: "TPOT, ms", left: 530.0, of: |summary| summary.tpot_ms },
];

/// Draws runs over their load, least load first; runs without a success have no point.
#[must_use]
pub fn chart(title: &str, summaries: &[Summary]) -> String {
    let mut runs: Vec<(f64, &Summary)> = summaries.iter().map(|summary| (load(summary), summary)).collect();
    runs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"22\" text-anchor=\"middle\" font-size=\"14\">{}</text>\n",
        WIDTH / 2.0,
        escape(title)
    );
    for panel in &PANELS {
        draw(&mut svg, panel, &runs);
    }
    svg.push_str("</svg>\n");
    svg
}

fn load(summary: &Summary) -> f64 {
    match summary.load {
        Load::Concurrency(concurrency) => concurrency as f64,
        Load::Rate(rate) => rate,
    }
}

fn draw(svg: &mut String, panel: &Panel, runs: &[(f64, &Summary)]) {
    let right = panel.left + PLOT_WIDTH;
    let points: Vec<(f64, Percentiles)> =
        runs.iter().filter_map(|(load, summary)| Some((*load, (panel.of)(summary)?))).collect();
    let loads: Vec<f64> = runs.iter().map(|(load, _)| *load).collect();
    let values: Vec<f64> =
        points.iter().flat_map(|(_, percentiles)| LINES.each_ref().map(|l| (l.of)(percentiles))).collect();
    let (across, up) = (Scale::over(&loads, panel.left, right), Scale::over(&values, BOTTOM, TOP));
    axes(svg, panel, &across, &up);
    let label = match runs.first().map(|(_, summary)| summary.load) {
        Some(Load::Concurrency(_)) => "requests at once",
        _ => "requests a second",
    };
    let middle = panel.left + PLOT_WIDTH / 2.0;
    let _ = writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", BOTTOM + 38.0);
    for (i, line) in LINES.iter().enumerate() {
        let place = |(load, percentiles): &(f64, Percentiles)| {
            format!("{:.1},{:.1}", across.at(*load), up.at((line.of)(percentiles)))
        };
        let places: Vec<String> = points.iter().map(place).collect();
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke-width=\"2\" {} points=\"{}\"/>",
            line.style,
            places.join(" ")
        );
        for (x, y) in places.iter().filter_map(|place| place.split_once(',')) {
            let _ = writeln!(svg, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3\" fill=\"white\" {}/>", line.style);
        }
        let (x, y) = (right - 130.0 + 70.0 * i as f64, TOP - 10.0);
        let _ = writeln!(svg, "<path d=\"M{x} {} h24\" stroke-width=\"2\" {}/>", y - 4.0, line.style);
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\">{}</text>", x + 30.0, line.name);
    }
}

/// Grid, ticks and the panel's title.
fn axes(svg: &mut String, panel: &Panel, across: &Scale, up: &Scale) {
    let (left, right) = (panel.left, panel.left + PLOT_WIDTH);
    let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>", TOP - 10.0, panel.title);
    for tick in up.ticks() {
        let y = up.at(tick);
        let _ = writeln!(svg, "<path d=\"M{left} {y:.1} H{right}\" stroke=\"#ddd\"/>");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 4.0,
            number(tick)
        );
    }
    for tick in across.ticks() {
        let x = across.at(tick);
        let _ = writeln!(svg, "<path d=\"M{x:.1} {BOTTOM} v5\" stroke=\"#333\"/>");
        let _ =
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", BOTTOM + 20.0, number(tick));
    }
    let _ = writeln!(svg, "<path d=\"M{left} {TOP} V{BOTTOM} H{right}\" fill=\"none\" stroke=\"#333\"/>");
}

/// As few digits as say it.
fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::run::Record;
    use crate::summary::Slo;
    use crate::summary::tests::{outcome, record};

    fn summary(load: Load, ttft: f64, tpot: f64) -> Summary {
        let records = vec![record(0, 0.0, ttft, tpot), record(1, 0.0, 3.0 * ttft, 2.0 * tpot)];
        Summary::new(load, &outcome(records), Slo::default())
    }

    #[test]
    fn a_chart_has_axes_units_legend_and_points() {
        let runs = [summary(Load::Rate(2.0), 400.0, 30.0), summary(Load::Rate(0.5), 100.0, 20.0)];
        insta::assert_snapshot!(chart("m <1> & co", &runs));
    }

    #[test]
    fn much_load_has_a_log_axis_and_failures_have_no_point() {
        let failed = Record { outcome: Err(Failure::Empty), ..record(0, 0.0, 1.0, 1.0) };
        let failed = Summary::new(Load::Concurrency(64), &outcome(vec![failed]), Slo::default());
        let svg = chart("m", &[summary(Load::Concurrency(1), 5.0, 1.0), failed.clone()]);
        assert!(svg.contains(">requests at once<") && svg.contains(">50<"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 4, "{svg}");
        assert!(!chart("m", &[failed]).contains("NaN"));
        assert!(!chart("m", &[]).contains("NaN"));
    }
}
