"""Worker machines: Celery carries record keys to them.

Celery has no public interface for a machine that takes exactly as many messages as it has free
slots. So some of its inner parts are overridden, and others are used directly. This is the whole
list; `tests/work/celery/test_celery_internals.py` checks it against the installed versions.

Overridden:

* `celery.worker.consumer.Consumer` by `MachineConsumer`: `Blueprint`, `__init__` (without gossip
  and heartbeat events), `create_task_handler` (messages of other tasks are rejected),
  `on_connection_error_after_connected` and `ensure_connected` (errors are explained in the log).
* `celery.worker.consumer.tasks.Tasks` by `TaskStep`: `qos_global`, `requires`.
* `celery.bootsteps.ConsumerStep` by `CancelStep`: `get_consumers`, `start`, `requires`.
* `celery.bootsteps.StartStopStep` by `SlotGateStep`: `__init__`, `start`, `stop`, `requires`; and
  the consumer calls `shutdown`. By `SupervisionStep`: `__init__`, `start`, `stop`, `requires`.
* `celery.worker.request.Request` by `JobRequest`: `on_success`, `on_failure`, `on_timeout` (each
  end of a job frees its slot).
* `celery.app.task.Task.Strategy`: `strategy` of `slot_gate.py` handles the messages of our task.
* `amqp.transport.SSLTransport` by `_TlsSocket`: `_wrap_socket` (our TLS context).
* `kombu.transport.pyamqp.Connection` by `_Connection`: `Transport`.
* `kombu.transport.pyamqp.SSLTransport` by `BrokerTransport`: `Connection`.
* `kombu.transport.TRANSPORT_ALIASES["amqps"]` names `BrokerTransport`.

Used directly:

* of Celery's consumer: `app`, `call_soon`, `channel_errors`, `connection_errors`, `controller`,
  `event_dispatcher`, `hostname`, `on_task_request`, `pool`, `qos`, `task_consumer`, `timer`;
* of its controller: `soft_time_limit`, `time_limit`; of its pool: `num_processes`;
* of its requests: `_app`, `args`, `id`, `revoked`, `terminate`;
* of `celery.worker.state`: `active_requests`, `maybe_shutdown`, `requests`, `task_reserved`;
* the steps `Connection`, `Events` and `Evloop` of `celery.worker.consumer`;
* of the application: `amqp.Producer`, `amqp.queues` with `consume_from`, `events.Dispatcher`,
  `steps`;
* `celery.events.get_exchange`, and `kombu.common.QoS` with `set` and `value`;
* of kombu's consumer: `add_queue`, `cancel_by_queue`, `consuming_from`;
* of kombu's connection: `collect`, and `ensure_connection` with the option
  `reraise_as_library_errors`;
* of kombu's message: `reject_log_error`; of py-amqp's connection: `sock`.
"""
