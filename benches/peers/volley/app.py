"""Reads the RSMQ queue `input`, adds one to `total`, writes the RSMQ queue `output`.

REDIS_HOST and REDIS_PORT say where Redis is; one message at a time, as py-volley works: start
several of these for more.
"""

import os

from pydantic import BaseModel
from volley import Engine, QueueConfig


class Item(BaseModel):
    id: int
    text: str
    total: int


def queue(name: str) -> QueueConfig:
    host, port = os.getenv("REDIS_HOST", "127.0.0.1"), int(os.getenv("REDIS_PORT", "6379"))
    return QueueConfig(
        name=name,
        value=name,
        profile="rsmq-pydantic",  # Pydantic reads and writes the JSON itself: the least work
        data_model=Item,
        config={"host": host, "port": port},
    )


app = Engine(
    app_name="bench",
    input_queue="input",
    output_queues=["output"],
    queue_config=[queue("input"), queue("output")],
    metrics_port=None,
    poll_interval_seconds=0.001,  # it waits only if the queue is empty
)


# Volley awaits an `async` function in place; a plain one would go through a pool of threads.
@app.stream_app
async def add(message: Item) -> list[tuple[str, Item]]:
    message.total += 1
    return [("output", message)]


if __name__ == "__main__":
    add()
