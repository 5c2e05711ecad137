-- The traces of the orders of a group that are sampled, so that an order keeps its trace if the process that saved it dies. A line for
-- each: the order id, its `traceparent`, its `tracestate`. NULL if none is sampled, which is the usual case. Adding the column is instant.
ALTER TABLE outbox_groups ADD COLUMN traces MEDIUMBLOB NULL;
