"""Name the service to `twistd` and `twist`; nothing of ours is imported at discovery."""

from twisted.application.service import ServiceMaker

shiftergw = ServiceMaker(
    "shiftergw",
    "shiftergw.app.tap",
    "The image gateway: container images to squashfs files on HPC clusters.",
    "shiftergw",
)
