"""What is trained: tasks, their data, and how the data is divided among clients.

================= ==============================================================
module            what it holds
================= ==============================================================
`base`            `Task`, the interface third parties implement, and `Examples`
`registry`        `task_names` and `create_task`: tasks by entry point
`partition`       `PartitionSpec` and who holds which record
`options`         the options that a task declares, and their check
`files`           data files, read only when their sha256 is right
`errors`          `TaskError`
`objectives`      losses and metrics: `MultiClassTask`, `BinaryTask`
`pooled`          `PooledTask`: one pool of records dealt out to clients
`models`          the small models of the built-in tasks
`digits`          scikit-learn's handwritten digits
`breast_cancer`   scikit-learn's breast cancer data
`heart_disease`   four hospitals, split as in FLamby
`mnist`           MNIST (by writer, if wished) and Fashion-MNIST
`adult`           census income
`shakespeare`     the next character, one client a role
================= ==============================================================

`registry`, `partition`, `options`, `files` and `errors` do not import torch, and neither does
this package; the other modules do, and are imported by the task that is asked for.
"""
