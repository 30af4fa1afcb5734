# A primary fills a new image and is acknowledged, epoch by epoch.
> hello 1
    prepare a new image
> sync 1
    commit
> checkpoint 2
    commit
> log in-sync 2
> checkpoint 3
    commit
