"""fill.py URL N: makes the RSMQ queues `input` and `output` anew and sends N messages to `input`."""

import json
import sys

from redis import Redis
from rsmq import RedisSMQ

redis, count = Redis.from_url(sys.argv[1]), int(sys.argv[2])
for name in ["output", "input"]:
    queue = RedisSMQ(client=redis, qname=name)
    queue.deleteQueue().exceptions(False).execute()
    queue.createQueue(maxsize=65536, vt=60).execute()
for number in range(count):
    message = {"id": number, "text": "x" * 160, "total": 1}
    # The body is the JSON itself.
    queue.sendMessage(message=json.dumps(message), encode=False).execute()
