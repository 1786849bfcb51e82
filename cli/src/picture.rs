//! `page --svg`: how long touches took, and where in the file.

use std::error::Error as StdError;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::error::Error;
use crate::latency::{Latency, PARTS, Part};
use crate::report::Report;
use crate::words::time;

/// The size of each of the two parts, in pixels.
const PANEL: (u32, u32) = (960, 360);

const MEAN: RGBColor = RGBColor(31, 119, 180);
const LONGEST: RGBColor = RGBColor(214, 39, 40);

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws both parts.
pub(crate) fn draw(report: &Report, file: &Path) -> Result<(), Error> {
    draw_into(report, file)
        .map_err(|error| Error::Picture { file: file.to_owned(), reason: error.to_string() })
}

fn draw_into(report: &Report, file: &Path) -> Result<(), Box<dyn StdError>> {
    let mut svg = String::new();
    {
        let size = (PANEL.0, PANEL.1 * 2);
        let picture = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        picture.fill(&WHITE)?;
        let (upper, lower) = picture.split_vertically(PANEL.1);
        let latency = &report.touched.latency;
        draw_histogram(latency, &upper).map_err(|error| error.to_string())?;
        draw_parts(latency, report.bytes, &lower).map_err(|error| error.to_string())?;
        picture.present()?;
    }
    Ok(std::fs::write(file, svg)?)
}

/// Draws how many touches took how long; both axes are logarithmic.
fn draw_histogram<'a>(latency: &Latency, panel: &Panel<'a>) -> Result<(), Box<dyn StdError + 'a>> {
    let powers = latency.histogram.by_power();
    let first = powers.first().map_or(1, |(power, _)| *power);
    let last = powers.last().map_or(2, |(power, _)| *power);
    let most = powers.iter().map(|(_, count)| *count).max().unwrap_or(1);
    let (left, right) = ((first as f64).log2(), (last as f64).log2() + 1.0);
    let mut chart = ChartBuilder::on(panel)
        .caption("touches by how long they took", ("sans-serif", 16))
        .margin(10)
        .margin_right(40)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(left..right, 0.0..height(most) * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_label_formatter(&|power| time(power.exp2()))
        .y_label_formatter(&|height| format!("{:.0}", 10_f64.powf(height - 1.0).floor()))
        .y_labels(6)
        .max_light_lines(1)
        .draw()?;
    chart.draw_series(powers.iter().map(|(power, count)| {
        let at = (*power as f64).log2();
        Rectangle::new([(at + 0.05, 0.0), (at + 0.95, height(*count))], MEAN.filled())
    }))?;
    Ok(())
}

/// Returns the height of a count: 0 for none, 1 for one, 2 for ten.
fn height(count: u64) -> f64 {
    if count == 0 { 0.0 } else { (count as f64).log10() + 1.0 }
}

/// Draws the mean and the longest time of touches in each part of the file.
fn draw_parts<'a>(
    latency: &Latency,
    bytes: usize,
    panel: &Panel<'a>,
) -> Result<(), Box<dyn StdError + 'a>> {
    let parts = || latency.parts.iter().enumerate().filter(|(_, part)| part.touches > 0);
    let mean_of = |part: &Part| (part.ns as f64 / part.touches as f64).max(1.0).log2();
    let shortest = parts().map(|(_, part)| mean_of(part)).fold(f64::INFINITY, f64::min);
    let (bottom, top) = ((shortest - 1.0).floor(), (latency.histogram.longest() as f64).log2());
    let part_bytes = bytes as f64 / PARTS as f64;
    let mut chart = ChartBuilder::on(panel)
        .caption("touches by where in the file they were", ("sans-serif", 16))
        .margin(10)
        .margin_right(40)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..bytes as f64, bottom..top.max(bottom + 1.0) + 0.5)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_label_formatter(&|at| format!("{:.1} MB", at / 1e6))
        .y_label_formatter(&|height| time(height.exp2()))
        .y_labels(6)
        .max_light_lines(1)
        .draw()?;
    let mean = chart.draw_series(parts().map(|(number, part)| {
        let at = number as f64 * part_bytes;
        Rectangle::new([(at, bottom), (at + part_bytes, mean_of(part))], MEAN.filled())
    }))?;
    mean.label("mean")
        .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], MEAN.filled()));
    let dots = chart.draw_series(parts().map(|(number, part)| {
        let at = (number as f64 + 0.5) * part_bytes;
        Circle::new((at, (part.longest as f64).max(1.0).log2()), 2, LONGEST.filled())
    }))?;
    dots.label("longest").legend(|(x, y)| Circle::new((x + 5, y), 3, LONGEST.filled()));
    let labels = SeriesLabelPosition::UpperLeft;
    chart
        .configure_series_labels()
        .position(labels)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
