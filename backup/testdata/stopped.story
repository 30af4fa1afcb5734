# A guest that is meant to be stopped is not taken over (RULES 6).
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> log stop
    end: stopped
> lost
> wait 10s
