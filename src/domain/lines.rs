use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{Invalid, ProductId};

/// The most lines of an order.
pub(crate) const MAX_LINES: usize = 100;
/// The most units in one line.
pub(crate) const MAX_QUANTITY: i64 = 1_000_000;

/// A product and a number of units: 1 to `MAX_QUANTITY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    product_id: ProductId,
    quantity: i64,
}

impl Line {
    /// Fails if the quantity is outside 1 to `MAX_QUANTITY`.
    pub fn new(product_id: ProductId, quantity: i64) -> Result<Self, Invalid> {
        if (1..=MAX_QUANTITY).contains(&quantity) {
            return Ok(Self { product_id, quantity });
        }
        Err(Invalid(format!("quantity {quantity} of {product_id} is outside 1 to {MAX_QUANTITY}")))
    }

    pub fn product_id(&self) -> &ProductId {
        &self.product_id
    }

    pub fn quantity(&self) -> i64 {
        self.quantity
    }
}

/// An order's lines as they were placed: 1 to `MAX_LINES`. A product may be repeated.
///
/// In the stores they are the JSON text `[["sku-1",2],…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines(Vec<Line>);

impl Lines {
    /// Fails if there are no lines, or more than `MAX_LINES`.
    pub fn new(lines: Vec<Line>) -> Result<Self, Invalid> {
        match lines.len() {
            1..=MAX_LINES => Ok(Self(lines)),
            found => Err(Invalid(format!("an order has 1 to {MAX_LINES} lines, not {found}"))),
        }
    }

    pub fn as_slice(&self) -> &[Line] {
        &self.0
    }

    /// The sum of the lines, one entry for each product.
    pub fn demand(&self) -> Demand {
        let mut demand: Vec<_> =
            self.0.iter().map(|line| (line.product_id.clone(), line.quantity)).collect();
        demand.sort_unstable();
        demand.dedup_by(|(id, quantity), (kept, sum)| {
            let is_repeated = id == kept;
            *sum += if is_repeated { *quantity } else { 0 };
            is_repeated
        });
        Demand(demand)
    }
}

impl Serialize for Lines {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|line| (line.product_id.as_str(), line.quantity)))
    }
}

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<(String, i64)>::deserialize(deserializer)?
            .into_iter()
            .map(|(id, quantity)| Line::new(ProductId::parse(&id)?, quantity))
            .collect::<Result<_, _>>()
            .and_then(Lines::new)
            .map_err(D::Error::custom)
    }
}

/// A number of units for each product, in the order of product ids: at most `MAX_LINES` ×
/// `MAX_QUANTITY` units of one.
///
/// In the stores it is the JSON text `[["sku-1",2],…]`. A text that repeats a product is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand(Vec<(ProductId, i64)>);

impl Demand {
    pub fn iter(&self) -> impl Iterator<Item = (&ProductId, i64)> {
        self.0.iter().map(|(id, quantity)| (id, *quantity))
    }

    pub(crate) fn product_ids(&self) -> impl Iterator<Item = &ProductId> {
        self.0.iter().map(|(id, _)| id)
    }
}

impl Serialize for Demand {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(id, quantity)| (id.as_str(), quantity)))
    }
}

impl<'de> Deserialize<'de> for Demand {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Vec::<(String, i64)>::deserialize(deserializer)?.into_iter();
        let entries = entries
            .map(|(id, quantity)| Ok((ProductId::parse(&id).map_err(D::Error::custom)?, quantity)));
        let mut demand = entries.collect::<Result<Vec<_>, D::Error>>()?;
        demand.sort_unstable();
        let is_repeated = demand.windows(2).any(|pair| pair[0].0 == pair[1].0);
        if is_repeated || demand.iter().any(|(_, quantity)| *quantity < 1) {
            return Err(D::Error::custom("a product is repeated, or has a quantity below 1"));
        }
        Ok(Self(demand))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str) -> Result<Lines, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_repeated_product_is_one_demand() {
        let demand = lines(r#"[["b",1],["a",2],["b",3]]"#).unwrap().demand();
        assert_eq!(serde_json::to_string(&demand).unwrap(), r#"[["a",2],["b",4]]"#);
    }

    #[test]
    fn lines_are_kept_as_placed() {
        let json = r#"[["b",1],["a",2],["b",3]]"#;
        assert_eq!(serde_json::to_string(&lines(json).unwrap()).unwrap(), json);
    }

    #[test]
    fn lines_out_of_bounds_are_refused() {
        let many = serde_json::to_string(&vec![("a", 1); 101]).unwrap();
        for bad in
            ["[]", r#"[["a",0]]"#, r#"[["a",-1]]"#, r#"[["a",1000001]]"#, r#"[["a b",1]]"#, &many]
        {
            assert!(lines(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ledger_entry_that_repeats_a_product_is_an_error() {
        assert!(serde_json::from_str::<Demand>(r#"[["a",1],["a",1]]"#).is_err());
    }
}
