//! The figures, as pictures: curves where the cases are points of one, else bars.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Report, Section, Table, number};

/// Of a table, in pixels.
const PANEL: (u32, u32) = (960, 360);

/// Of that, what the implementations' names take.
const LEGEND: u32 = 260;

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws each benchmark that has a curve or bars into a file of its own.
///
/// # Errors
///
/// Where files cannot be written.
pub(crate) fn draw(report: &Report, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    for section in &report.benchmarks {
        let tables: Vec<_> = drawn(section).collect();
        let Ok(panels @ 1..) = u32::try_from(tables.len()) else { continue };
        let path = folder.join(format!("{}.svg", section.benchmark));
        let picture = SVGBackend::new(&path, (PANEL.0, PANEL.1 * panels)).into_drawing_area();
        picture.fill(&WHITE).map_err(|error| error.to_string())?;
        for (panel, table) in picture.split_evenly((tables.len(), 1)).iter().zip(tables) {
            draw_table(table, panel).map_err(|error| error.to_string())?;
        }
        picture.present().map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// What there is to compare, but not what follows from another table.
fn drawn(section: &Section) -> impl Iterator<Item = &Table> {
    section.tables.iter().filter(|table| table.unit != "ratio" && table.lines.len() > 1)
}

fn draw_table<'a>(
    table: &Table,
    panel: &Panel<'a>,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let figures = || table.lines.iter().flat_map(|line| line.figures.iter().flatten());
    let lowest = figures().map(|figure| figure.lower_quartile).fold(f64::INFINITY, f64::min);
    let highest = figures().map(|figure| figure.upper_quartile).fold(0.0, f64::max);
    let up = Scale::of(lowest, highest);
    let places: Vec<f64> = match &table.scale {
        Some(points) => points.iter().map(|point| point.log2()).collect(),
        None => (0..table.cases.len()).map(|case| case as f64).collect(),
    };
    let last = places.last().copied().unwrap_or_default();
    let (picture, legend) = panel.split_horizontally(PANEL.0 - LEGEND);
    let mut chart = ChartBuilder::on(&picture)
        .caption(format!("{}, {}", table.title, table.unit), ("sans-serif", 16))
        .margin(10)
        .margin_bottom(30)
        .y_label_area_size(70)
        .build_cartesian_2d(-0.5..last + 0.5, up.range.clone())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(1)
        .y_label_formatter(&|height| number(up.figure(*height)))
        .draw()?;
    // The cases stand where they are, not where ticks would be.
    let centered = TextStyle::from(("sans-serif", 12)).pos(Pos::new(HPos::Center, VPos::Top));
    chart.draw_series(table.cases.iter().zip(&places).map(|(case, &place)| {
        EmptyElement::at((place, up.range.start)) + Text::new(case.clone(), (0, 6), &centered)
    }))?;

    let thickness = 0.8 / table.lines.len() as f64;
    for (number, line) in table.lines.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let points = places.iter().zip(&line.figures).filter_map(|(place, figure)| {
            let figure = figure.as_ref()?;
            let heights = [figure.lower_quartile, figure.median, figure.upper_quartile];
            Some((*place, heights.map(|figure| up.height(figure))))
        });
        // Bars of a case stand beside each other.
        let shift =
            if table.scale.is_some() { 0.0 } else { (number as f64 + 0.5) * thickness - 0.4 };
        let points: Vec<_> = points.map(|(at, heights)| (at + shift, heights)).collect();
        if table.scale.is_some() {
            let medians = points.iter().map(|(at, [_, median, _])| (*at, *median));
            let curve = PathElement::new(medians.collect::<Vec<_>>(), color.stroke_width(2));
            chart.draw_series([curve])?;
        } else {
            let half = thickness / 2.0;
            chart.draw_series(points.iter().map(|(at, [_, median, _])| {
                Rectangle::new([(at - half, up.range.start), (at + half, *median)], color.filled())
            }))?;
        }
        chart.draw_series(points.iter().map(|(at, [lower, _, upper])| {
            PathElement::new([(*at, *lower), (*at, *upper)], BLACK)
        }))?;
        let y = i32::try_from(number).unwrap_or_default() * 18 + 40;
        legend.draw(&Rectangle::new([(0, y), (12, y + 12)], color.filled()))?;
        legend.draw(&Text::new(line.implementation.as_str(), (18, y), ("sans-serif", 12)))?;
    }
    Ok(())
}

/// From a figure to a height: logarithmic where figures differ much.
struct Scale {
    logarithmic: bool,
    range: Range<f64>,
}

impl Scale {
    fn of(lowest: f64, highest: f64) -> Self {
        if lowest > 0.0 && highest / lowest > 20.0 {
            return Self {
                logarithmic: true,
                range: (lowest / 2.0).log10()..(highest * 1.5).log10(),
            };
        }
        Self { logarithmic: false, range: 0.0..highest.max(f64::MIN_POSITIVE) * 1.1 }
    }

    fn height(&self, figure: f64) -> f64 {
        if self.logarithmic { figure.log10() } else { figure }
    }

    fn figure(&self, height: f64) -> f64 {
        if self.logarithmic { 10_f64.powf(height) } else { height }
    }
}
