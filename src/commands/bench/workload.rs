//! A seeded load: the same seed gives the same orders.

use std::{collections::BTreeMap, ops::RangeInclusive, path::Path, time::Duration};

use anyhow::{Context as _, bail};

use crate::{
    domain::{Line, Lines, ProductId},
    ingest::OrderRequest,
};

const LONGEST_WARM_UP: Duration = Duration::from_secs(3);
const QUANTITIES: RangeInclusive<i64> = 1..=5;

/// The lines of each order, in the order in which they are placed.
pub struct Workload {
    pub(crate) name: String,
    pub orders: Vec<Lines>,
}

/// What the generated orders are drawn from.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(crate) orders: usize,
    pub(crate) products: usize,
    /// The exponent of Zipf's law: product n is asked for with a weight of n^-zipf. 0 is uniform.
    pub(crate) zipf: f64,
    pub(crate) lines: RangeInclusive<usize>,
    pub(crate) seed: u64,
}

impl Workload {
    pub(super) fn generate(shape: &Shape) -> anyhow::Result<Self> {
        let &Shape { orders, products, zipf, ref lines, seed } = shape;
        let ids = (0..products)
            .map(|n| ProductId::parse(&format!("sku-{n}")))
            .collect::<Result<Vec<_>, _>>()?;
        let mut sum = 0.0;
        let cumulative: Vec<f64> = (1..=u32::try_from(products)?)
            .map(|rank| {
                sum += f64::from(rank).powf(-zipf);
                sum
            })
            .collect();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut order = || {
            let count = rng.usize(lines.clone()).min(products);
            let mut demand = BTreeMap::new();
            while demand.len() < count {
                let drawn = rng.f64() * sum;
                let product = cumulative.partition_point(|bound| *bound <= drawn).min(products - 1);
                demand.entry(product).or_insert_with(|| rng.i64(QUANTITIES));
            }
            let lines = demand
                .into_iter()
                .map(|(product, quantity)| Line::new(ids[product].clone(), quantity));
            Ok(Lines::new(lines.collect::<Result<_, _>>()?)?)
        };
        let orders = (0..orders).map(|_| order()).collect::<anyhow::Result<_>>()?;
        let name =
            format!("{products} products, zipf {zipf}, {} to {} lines", lines.start(), lines.end());
        Ok(Self { name, orders })
    }

    /// How much of a run at a rate is not counted: a tenth, 3 s at most.
    pub fn warm_up(&self, rate: u32) -> Duration {
        let orders = u32::try_from(self.orders.len()).unwrap_or(u32::MAX);
        (Duration::from_secs(1) * orders / rate / 10).min(LONGEST_WARM_UP)
    }

    /// The first `limit` valid orders of a file, a request body a line. Those that ingest would
    /// refuse are left out.
    pub(super) fn read(file: &Path, limit: usize) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let requests = text.lines().filter(|line| !line.trim().is_empty());
        let valid = requests.filter_map(|line| OrderRequest::parse(line.as_bytes(), u32::MAX).ok());
        let orders: Vec<_> = valid.map(|request| request.lines).take(limit).collect();
        if orders.is_empty() {
            bail!("{}: no line is a valid order", file.display());
        }
        let name = file
            .file_name()
            .map_or_else(|| "baskets".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, orders })
    }

    pub(super) fn count_lines(&self) -> usize {
        self.orders.iter().map(|lines| lines.as_slice().len()).sum()
    }

    /// For each product so much that `fill` of the demand for it can be served.
    pub fn stock(&self, fill: f64) -> BTreeMap<ProductId, i64> {
        let mut demand = BTreeMap::new();
        for line in self.orders.iter().flat_map(Lines::as_slice) {
            *demand.entry(line.product_id().clone()).or_insert(0_i64) += line.quantity();
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "units of a bench"
        )]
        for units in demand.values_mut() {
            *units = (*units as f64 * fill) as i64;
        }
        demand
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(zipf: f64) -> Shape {
        Shape { orders: 2_000, products: 100, zipf, lines: 1..=3, seed: 7 }
    }

    fn share_of_first(zipf: f64) -> f64 {
        let workload = Workload::generate(&shape(zipf)).unwrap();
        let first = workload
            .orders
            .iter()
            .flat_map(Lines::as_slice)
            .filter(|l| l.product_id().as_str() == "sku-0");
        f64::from(u32::try_from(first.count()).unwrap())
            / f64::from(u32::try_from(workload.count_lines()).unwrap())
    }

    #[test]
    fn the_same_seed_gives_the_same_orders() {
        let (one, two) =
            (Workload::generate(&shape(1.0)).unwrap(), Workload::generate(&shape(1.0)).unwrap());
        assert_eq!(one.orders, two.orders);
        assert_ne!(
            one.orders,
            Workload::generate(&Shape { seed: 8, ..shape(1.0) }).unwrap().orders
        );
    }

    #[test]
    fn zipf_makes_the_first_product_hot() {
        assert!((0.005..0.02).contains(&share_of_first(0.0)), "{}", share_of_first(0.0));
        // The harmonic number of 100 is 5.19; drawing without repetition evens it out a little.
        assert!((0.14..0.22).contains(&share_of_first(1.0)), "{}", share_of_first(1.0));
    }

    #[test]
    fn the_stock_serves_the_share_that_is_asked_for() {
        let workload = Workload::generate(&shape(0.0)).unwrap();
        let (all, half): (i64, i64) =
            (workload.stock(1.0).values().sum(), workload.stock(0.5).values().sum());
        assert!((all / 2 - 100..=all / 2).contains(&half), "{half} of {all}");
    }
}
