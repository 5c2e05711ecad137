// Places orders, hears of them, fails them and follows the stock: see examples/README.md.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// read calls handle for each value of a topic, from its beginning, and with nil after each second
// without one. It ends when handle returns true.
func read(brokers, topic string, handle func(value []byte) bool) {
	// A service has one consumer group for ever, and commits. So it reads each message once.
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(topic))
	check(err)
	defer client.Close()
	for {
		second, cancel := context.WithTimeout(context.Background(), time.Second)
		fetches := client.PollFetches(second)
		cancel()
		if fetches.Empty() && handle(nil) {
			return
		}
		for _, record := range fetches.Records() {
			if record.Value != nil && handle(record.Value) { // nil is a tombstone
				return
			}
		}
	}
}

// produce returns once the brokers have the record.
func produce(brokers string, record *kgo.Record) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	check(err)
	defer client.Close()
	check(client.ProduceSync(context.Background(), record).FirstErr())
}

// placeByKafka places an order, and waits for its outcome. The reference is our own name of it.
func placeByKafka(brokers, requests, statuses, productID, quantity string) {
	reference := "example-" + uuid.NewString()
	request := orderRequest{Reference: &reference, Lines: lines(productID, quantity)}
	produce(brokers, &kgo.Record{
		Topic: requests,
		Value: load("order_request").encode(request),
		// With a key of its own, the request makes one order, however often it is produced.
		Headers: []kgo.RecordHeader{{Key: "Idempotency-Key", Value: []byte(reference)}},
	})
	schema := load("order_status")
	read(brokers, statuses, func(value []byte) bool {
		var status orderStatus
		if value != nil {
			check(schema.decode(value, &status))
		}
		isOurs := status.Reference != nil && *status.Reference == reference
		if isOurs {
			show(status)
		}
		return isOurs
	})
}

// placeByHTTP sends a request twice, as a client does whose connection broke. It makes one order.
func placeByHTTP(url, productID, quantity string) {
	key := uuid.NewString()
	order, err := json.Marshal(map[string]any{"lines": lines(productID, quantity)})
	check(err)
	for range 2 {
		request, err := http.NewRequest("POST", url+"/v1/orders", bytes.NewReader(order))
		check(err)
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Prefer", "wait=10")
		request.Header.Set("Idempotency-Key", key)
		answer, err := http.DefaultClient.Do(request)
		check(err)
		shown := map[string]any{
			"code":     answer.StatusCode, // 409, for example: not enough stock
			"replayed": answer.Header.Get("Idempotent-Replayed") == "true",
		}
		var body map[string]any
		check(json.NewDecoder(answer.Body).Decode(&body))
		check(answer.Body.Close())
		maps.Copy(shown, body)
		show(shown)
	}
}

// fail reports that an order failed late, and waits until its stock is released.
func fail(brokers, statuses, orderID, reason string) {
	schema := load("order_status")
	produce(brokers, &kgo.Record{Topic: statuses, Key: []byte(orderID), Value: schema.encode(
		orderStatus{
			OrderID: orderID, Status: "FAILED", Reason: &reason, Source: "payments",
			OccurredAt: time.Now(),
		})})
	read(brokers, statuses, func(value []byte) bool {
		var status orderStatus
		if value != nil {
			check(schema.decode(value, &status))
		}
		if status.OrderID != orderID {
			return false
		}
		show(status)
		return status.Status == "RELEASED"
	})
}

// followLevels keeps the stock of each product. It ends after so many seconds without a message.
func followLevels(brokers, topic, seconds string) {
	schema, levels, silent := load("stock_level"), map[string]stockLevel{}, 0
	read(brokers, topic, func(value []byte) bool {
		if value == nil {
			silent++
			return silent == number(seconds)
		}
		silent = 0
		var level stockLevel
		check(schema.decode(value, &level))
		// Messages may be repeated, and come out of order. The highest version is true.
		if level.Version > levels[level.ProductID].Version {
			levels[level.ProductID] = level
		}
		return false
	})
	for _, level := range levels {
		show(level)
	}
}

func lines(productID, quantity string) []line {
	return []line{{productID, int64(number(quantity))}}
}

func number(text string) int {
	parsed, err := strconv.Atoi(text)
	check(err)
	return parsed
}

func show(record any) {
	check(json.NewEncoder(os.Stdout).Encode(record))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	command, words := os.Args[1], os.Args[2:]
	switch command {
	case "place-by-kafka":
		placeByKafka(words[0], words[1], words[2], words[3], words[4])
	case "place-by-http":
		placeByHTTP(words[0], words[1], words[2])
	case "fail":
		fail(words[0], words[1], words[2], words[3])
	case "follow-levels":
		followLevels(words[0], words[1], words[2])
	default:
		check(fmt.Errorf("no such command: %s", command))
	}
}
