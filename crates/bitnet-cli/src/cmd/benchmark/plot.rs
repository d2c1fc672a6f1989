//! Curves over threads, context and batch as one SVG picture, which follows the reader's light or dark theme.

use bitnet::bench::{BenchReport, Case, Line, Measurement, Work};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::failure::Failure;
use crate::report::plural;

/// Width and height of a panel.
const PANEL: (u32, u32) = (560, 380);

/// What a light theme shows, and what a dark one has in its place. The picture is drawn in the first; its style sheet exchanges
/// them. Colours of curves are halfway and serve both.
const TEXT: (RGBColor, &str) = (RGBColor(0x1F, 0x23, 0x28), "#E6EDF3");
const FAINT: (RGBColor, &str) = (RGBColor(0xD0, 0xD7, 0xDE), "#3D444D");
const CURVES: [RGBColor; 6] = [
    RGBColor(0x3B, 0x82, 0xD6),
    RGBColor(0xD9, 0x6B, 0x27),
    RGBColor(0x2E, 0x9E, 0x6B),
    RGBColor(0x9A, 0x62, 0xC8),
    RGBColor(0xC0, 0x4A, 0x6E),
    RGBColor(0x8A, 0x85, 0x2A),
];

/// A picture with one axis of each.
#[derive(Debug, PartialEq)]
struct Panel {
    title: &'static str,
    x: &'static str,
    curves: Vec<Curve>,
}

/// A curve: x, tokens per second, and what the probes allow.
#[derive(Debug, PartialEq)]
struct Curve {
    name: String,
    points: Vec<(f64, f64, f64)>,
}

/// Draws all panels that have a curve.
pub fn svg(report: &BenchReport) -> anyhow::Result<String> {
    let panels = panels(report);
    if panels.is_empty() {
        return Err(Failure::input(
            "there is no curve to plot: nothing was measured at two places",
        )
        .hint("give several --threads, --ctx or --batch-sizes")
        .into());
    }
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(2);
    let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
    let mut picture = String::new();
    {
        let root = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        for (panel, area) in panels.iter().zip(root.split_evenly((rows, columns))) {
            draw(panel, &area)
                .map_err(|error| anyhow::anyhow!("the plot cannot be drawn: {error}"))?;
        }
        root.present()?;
    }
    Ok(themed(&picture, &title(report)))
}

fn title(report: &BenchReport) -> String {
    let cpu = report.machine.cpu.as_deref().unwrap_or("an unknown processor");
    format!("{} on {cpu}: tokens per second, and what the machine allows", report.model.name)
}

fn panels(report: &BenchReport) -> Vec<Panel> {
    let is_prompt = |work| matches!(work, Work::Prompt { .. });
    let first_generation = |work| matches!(work, Work::Generation { .. });
    let candidates = [
        ("Generation, by threads", "threads", over_threads(report, first_generation)),
        ("Prompt, by threads", "threads", over_threads(report, is_prompt)),
        (
            "Generation, by context",
            "tokens in the cache",
            over_lines(report, |line| match line.work {
                Work::Generation { depth, .. } => Some(depth),
                _ => None,
            }),
        ),
        (
            "All sequences, by batch",
            "sequences together",
            over_lines(report, |line| match line.work {
                Work::Batch { sequences, .. } => Some(sequences),
                _ => None,
            }),
        ),
    ];
    let panel = |(title, x, curves): (_, _, Vec<Curve>)| Panel { title, x, curves };
    candidates.into_iter().map(panel).filter(|panel| !panel.curves.is_empty()).collect()
}

fn measured(report: &BenchReport) -> impl Iterator<Item = (&Case, &Measurement)> {
    report.cases.iter().filter_map(|case| Some((case, case.measurement()?)))
}

/// A curve for each level.
fn over_threads(report: &BenchReport, wanted: impl Fn(Work) -> bool + Copy) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for (case, m) in measured(report) {
        let Some(line) = m.line(wanted) else { continue };
        let point = (case.threads as f64, line.rate.median, line.bound);
        match curves.iter_mut().find(|curve| curve.name == m.kernel) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve { name: m.kernel.to_owned(), points: vec![point] }),
        }
    }
    long_enough(curves)
}

/// A curve for each case.
fn over_lines(report: &BenchReport, x: impl Fn(&Line) -> Option<usize>) -> Vec<Curve> {
    let curve = |(case, m): (&Case, &Measurement)| {
        let point = |line: &Line| Some((x(line)? as f64, line.rate.median, line.bound));
        let name = format!("{}, {}", m.kernel, plural(case.threads, "thread"));
        Curve { name, points: m.lines.iter().filter_map(point).collect() }
    };
    long_enough(measured(report).map(curve).collect())
}

fn long_enough(mut curves: Vec<Curve>) -> Vec<Curve> {
    for curve in &mut curves {
        curve.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        curve.points.dedup_by_key(|point| point.0);
    }
    curves.retain(|curve| curve.points.len() > 1);
    curves
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT.0)
}

fn draw<'a>(panel: &Panel, area: &Area<'a>) -> Result<(), DrawError<'a>> {
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let most_x = points().map(|point| point.0).fold(0.0, f64::max);
    let most_y = points().map(|point| point.1.max(point.2)).fold(0.0, f64::max);
    let lines = legend(panel, area)?;
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .margin_top(LEGEND_TOP + lines * LEGEND_LINE + 8)
        .x_label_area_size(46)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..most_x * 1.03, 0.0..most_y * 1.06)?;
    // Threads and sequences are whole numbers, and a step of less than one has nothing to say.
    let whole = |x: &f64| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT.0)
        .axis_style(FAINT.0)
        .label_style(text(15))
        .axis_desc_style(text(15))
        .x_desc(panel.x)
        .y_desc("tokens/s")
        .x_labels(10)
        .y_labels(7)
        .x_label_formatter(&whole)
        .y_label_formatter(&|y| if most_y < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
        .draw()?;
    for (curve, color) in panel.curves.iter().zip(CURVES.iter().cycle()) {
        let bound = curve.points.iter().map(|&(x, _, bound)| (x, bound));
        chart.draw_series(DashedLineSeries::new(bound, 5, 5, color.stroke_width(1)))?;
        let reached = || curve.points.iter().map(|&(x, y, _)| (x, y));
        chart.draw_series(LineSeries::new(reached(), color.stroke_width(2)))?;
        chart.draw_series(reached().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    Ok(())
}

/// Where the legend begins under the panel's title, and the height of its lines.
const LEGEND_TOP: u32 = 40;
const LEGEND_LINE: u32 = 20;

/// Draws the title, and below it which curve is which. Returns the lines that the legend takes.
fn legend<'a>(panel: &Panel, area: &Area<'a>) -> Result<u32, DrawError<'a>> {
    /// Width of a letter and of the stroke beside a name; fonts differ, so there is some room.
    const LETTER: i32 = 7;
    const STROKE: i32 = 32;
    area.draw(&Text::new(panel.title, (18, 14), text(20)))?;
    let (mut x, mut line) = (18, 0);
    let curves = panel.curves.iter().zip(CURVES.iter().cycle());
    let names = curves.map(|(curve, color)| (&*curve.name, Some(*color)));
    for (name, color) in names.chain([("dashed: what the probes allow", None)]) {
        let stroke = if color.is_some() { STROKE } else { 0 };
        let width = stroke + LETTER * name.len() as i32;
        if x > 18 && x + width > PANEL.0 as i32 {
            (x, line) = (18, line + 1);
        }
        let y = (LEGEND_TOP + line * LEGEND_LINE) as i32;
        if let Some(color) = color {
            let ends = vec![(x, y + 7), (x + STROKE - 10, y + 7)];
            area.draw(&PathElement::new(ends, color.stroke_width(3)))?;
        }
        area.draw(&Text::new(name, (x + stroke, y), text(15)))?;
        x += width + 16;
    }
    Ok(line + 1)
}

/// Adds a title for those who hear pictures, and the colours of a dark theme.
fn themed(picture: &str, title: &str) -> String {
    let dark: String = [TEXT, FAINT]
        .iter()
        .map(|(RGBColor(r, g, b), dark)| {
            let light = format!("#{r:02X}{g:02X}{b:02X}");
            format!("[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}")
        })
        .collect();
    let title = title.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let style = format!("<style>@media (prefers-color-scheme:dark){{{dark}}}</style>");
    match picture.find("<svg").and_then(|start| Some(start + picture[start..].find('>')? + 1)) {
        Some(end) => {
            format!("{}\n<title>{title}</title>\n{style}{}", &picture[..end], &picture[end..])
        }
        None => picture.to_owned(),
    }
}
