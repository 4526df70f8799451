#!/bin/bash
# A Prefect worker that ends its flow runs when it is told to end, with the options of `prefect worker start`. Training
# stops where nothing is lost. By itself the worker would take no more runs, and wait for those it has.

prefect worker start "$@" &
worker=$!
flow_runs() { cat /proc/"$worker"/task/*/children 2>/dev/null; }
stop() {
    kill -TERM "$worker"
    # Each has a process group of its own, which Prefect too tells of a cancellation.
    for run in $(flow_runs); do kill -TERM -- "-$run" 2>/dev/null || kill -TERM "$run"; done
    while [ -n "$(flow_runs)" ]; do sleep 0.5; done
    kill -KILL "$worker"
    exit 143
}
trap stop TERM
wait "$worker"
