"""Running a `model.lil`: the C runtime (c/), its binding and the session around it. numpy is all it needs."""
